"""Methods of attribution as the commands name them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gradsift.models import ModelSource, load_task
from gradsift.projecting import ProjectionName, load_adam_state, make_projector
from influence import (
    BM25,
    EKFAC,
    KFAC,
    LESS,
    MFAC,
    TFIDF,
    TRAK,
    DataInf,
    EmbeddingSimilarity,
    GradientCosine,
    GradientDot,
    HiddenSimilarity,
    LastLayerTracIn,
    ModelCheckpoint,
    RelatIF,
    RelativeDamping,
    RepresenterPoints,
    RowInfluence,
    TracIn,
    TrackStar,
    TRAKEnsemble,
    copy_state,
)
from projections import PassSettings, Projector, SentenceEncoder, Task

MethodName = Literal[
    "ekfac",
    "kfac",
    "datainf",
    "mfac",
    "tracin",
    "tracin-last-layer",
    "trak",
    "trak-log-odds",
    "less",
    "trackstar",
    "dot",
    "cosine",
    "representer",
    "hidden-states",
    "sentences",
    "bm25",
    "tfidf",
]
WITHOUT_MODEL = ("sentences", "bm25", "tfidf")
OF_CHECKPOINTS = ("tracin", "tracin-last-layer", "trak-log-odds", "less", "dot", "cosine", "trak")
OF_ROWS = ("trak", "trak-log-odds", "less", "trackstar", "dot", "cosine")
L2 = 1e-3  # of representer points unless said otherwise


@dataclass(frozen=True, kw_only=True)
class MethodSource:
    """Which method, and what it needs."""

    method: MethodName = "ekfac"
    """How examples are attributed. Curvature: ekfac, kfac, datainf, mfac. Rows of projected
    gradients: trak, trackstar, dot, cosine. Checkpoints: tracin, tracin-last-layer,
    trak-log-odds (models), less (with Adam's state). The last layer: representer,
    hidden-states. Texts alone, without a model: bm25, tfidf, sentences."""

    checkpoints: tuple[Path, ...] = ()
    """Folders of saved models of the same shape; the model alone if left out. less reads Adam's
    state from optimizer.pt in each."""

    learning_rates: tuple[float, ...] = ()
    """Weight of each checkpoint: the learning rate around it; equal if left out."""

    num_dims: int = 4096
    """Dimensions of projected gradients; 0 keeps gradients as they are, for small models."""

    projection: ProjectionName = "sjlt"
    """How gradients are projected."""

    optimizer_state: Path | None = None
    """State of Adam whose second moment scales projected gradients, as trackstar has it."""

    num_rows: int = 512
    """Gradients that mfac holds."""

    damping: float | None = None
    """Damping, as a multiple of the mean eigenvalue; the regularisation of representer. By a
    rule of each method if left out."""

    relative: bool = False
    """Divide by the root of each example's self-influence (RelatIF)."""

    encoder: str | None = None
    """Folder or name of the sentence-transformers model of sentences."""


Builder = Callable[["Ingredients"], Any]


@dataclass(frozen=True)
class Ingredients:
    """What methods are made of.

    Args:
        options: The options.
        task: The model and its loss; None for methods without a model.
        checkpoints: The states.
        projector: The map of gradients; None keeps them as they are.
        seed: Seed of what is random.
        text_column: Name of the column with the text.
        path: Where rows are kept.
    """

    options: MethodSource
    task: Task | None
    checkpoints: Sequence[ModelCheckpoint]
    projector: Projector | None
    seed: int
    text_column: str
    path: Path

    @property
    def damping(self) -> RelativeDamping:
        """The rule of the damping."""
        given = self.options.damping
        return RelativeDamping() if given is None else RelativeDamping(given)

    def rows(self, metric: Any) -> RowInfluence:
        """Return a metric on rows at every state."""
        return RowInfluence(
            metric=metric,
            projector=self.projector,
            checkpoints=self.checkpoints,
            path=self.path,
        )

    def sentences(self) -> EmbeddingSimilarity:
        """Return the similarity of sentences."""
        if self.options.encoder is None:
            raise ValueError(
                "`--encoder` must be given with `--method sentences`: the folder or name of a "
                "sentence-transformers model. Or use tfidf, which needs none."
            )
        encoder = SentenceEncoder(model=self.options.encoder, text_column=self.text_column)
        return EmbeddingSimilarity(encoder=encoder, path=self.path / "embeddings")


MAKERS: dict[MethodName, Builder] = {
    "ekfac": lambda i: EKFAC(seed=i.seed, damping=i.damping),
    "kfac": lambda i: KFAC(seed=i.seed, damping=i.damping),
    "datainf": lambda i: DataInf(damping=i.damping),
    "mfac": lambda i: MFAC(num_rows=i.options.num_rows, damping=i.damping, seed=i.seed),
    "tracin": lambda i: TracIn(checkpoints=i.checkpoints),
    "tracin-last-layer": lambda i: LastLayerTracIn(checkpoints=i.checkpoints),
    "trak": lambda i: i.rows(TRAK(damping=i.options.damping)),
    "trak-log-odds": lambda i: TRAKEnsemble(
        checkpoints=i.checkpoints,
        projector=i.projector,
        damping=i.options.damping,
        path=i.path,
    ),
    "less": lambda i: LESS(checkpoints=i.checkpoints, projector=i.projector, path=i.path),
    "trackstar": lambda i: i.rows(TrackStar(damping=i.damping.factor)),
    "dot": lambda i: i.rows(GradientDot()),
    "cosine": lambda i: i.rows(GradientCosine()),
    "representer": lambda i: RepresenterPoints(
        l2=L2 if i.options.damping is None else i.options.damping
    ),
    "hidden-states": lambda i: HiddenSimilarity(),
    "sentences": Ingredients.sentences,
    "bm25": lambda i: BM25(text_column=i.text_column),
    "tfidf": lambda i: TFIDF(text_column=i.text_column),
}


def make_method(
    options: MethodSource,
    source: ModelSource,
    task: Task | None,
    *,
    seed: int,
    path: Path,
    settings: PassSettings | None = None,
) -> Any:
    """Return the method of this name.

    Args:
        options: Which method, and what it needs.
        source: How checkpoints are loaded, like the model.
        task: The model and its loss; None for methods without a model.
        seed: Seed of what is random.
        path: Where rows are kept.
        settings: The layers that a pass looks at.

    Raises:
        DataError: A checkpoint or a state of Adam cannot be read.
        ValueError: Options are missing, or do not go together.
    """
    if options.optimizer_state is not None and options.method not in OF_ROWS:
        raise ValueError(
            f"`--optimizer-state` must be used with one of {', '.join(OF_ROWS)}, whose gradients "
            f"it scales. Got `--method {options.method}`."
        )
    projector = None
    if task is not None and options.method in OF_ROWS and options.num_dims:
        projector = make_projector(
            options.projection,
            task.model,
            num_dims=options.num_dims,
            seed=seed,
            settings=settings,
            optimizer_state=options.optimizer_state,
        )
    ingredients = Ingredients(
        options,
        task,
        load_checkpoints(options, source, task),
        projector,
        seed,
        source.text_column,
        path,
    )
    method = MAKERS[options.method](ingredients)
    return RelatIF(method=method) if options.relative else method


def load_checkpoints(
    options: MethodSource, source: ModelSource, task: Task | None
) -> list[ModelCheckpoint]:
    """Return the states in the folders of saved models, or that of the model itself.

    Raises:
        DataError: A folder or a state of Adam cannot be read.
        ValueError: The method takes none, there are not as many rates, or Adam's state is missing.
    """
    rates = options.learning_rates or (1.0,) * max(1, len(options.checkpoints))
    if options.checkpoints and options.method not in OF_CHECKPOINTS:
        raise ValueError(
            f"`--checkpoints` must be used with one of {', '.join(OF_CHECKPOINTS)}. Got "
            f"`--method {options.method}`, which looks at one model."
        )
    if len(rates) != max(1, len(options.checkpoints)):
        raise ValueError(
            f"`--learning-rates` must have one number a checkpoint. Got {len(rates)} for "
            f"{len(options.checkpoints)}."
        )
    if task is None or options.method not in OF_CHECKPOINTS:
        return []
    if not options.checkpoints:
        if options.method == "less":
            raise ValueError(
                "`--checkpoints` must be given with `--method less`: folders of saved models with "
                "Adam's state in optimizer.pt, as trainers write them."
            )
        needs = options.method in ("tracin", "tracin-last-layer", "trak-log-odds")
        return [ModelCheckpoint(state=copy_state(task.model))] if needs else []
    found = []
    for folder, rate in zip(options.checkpoints, rates, strict=True):
        model = load_task(replace(source, model=str(folder))).model
        adam = None
        if options.method == "less":
            adam = load_adam_state(folder / "optimizer.pt", model)
        found.append(ModelCheckpoint(state=copy_state(model), learning_rate=rate, adam=adam))
    return found
