"""The reading order is the architecture: a module imports only what stands above it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("projections", "influence", "selection", "gradsift")

READING_ORDER = """
projections.errors          the errors that callers may catch
projections.checks          checks of arguments
projections.progress        the one funnel of progress
projections.life_signs      which ranks of a run are alive
projections.ranks           several processes as one run
projections.files           files that are whole or not there
projections.sharded         models spread over ranks
projections.fingerprint     do two artefacts belong together?
projections.philox          random bits from a key and a counter
projections.components      what gradients are of, and their parameters
projections.factors         the gradient of one use, in factors
projections.per_example     per-example gradients over all uses
projections.inner_products  inner products of gradients, pair by pair
projections.base            the seams: column, accumulator, projector, results
projections.data            datasets as rows with stable ids
projections.streams         files as streams of lines
projections.records         datasets from files and back
projections.ray_data        work on the blocks of a Ray dataset
projections.text_columns    ids, texts and domains out of tables
projections.text_blocks     some texts as lines, tables or items
projections.text_sources    files and datasets cut into blocks
projections.texts           texts with ids from anything, in blocks
projections.parallel        work on many items at once, in order
projections.labels          where the labels of a Fisher matrix come from
projections.task            a model, and what the loss of an example means
projections.tasks.categorical   losses and statistics over labels
projections.tasks.log_odds  log-odds in place of losses
projections.tasks.classification    images, tables and texts
projections.tasks.tokens    what tasks over token lists share
projections.tasks.language  causal language models
projections.tasks.masked    masked language models
projections.tasks.seq2seq   encoders with decoders
projections.tasks.regression    squared errors
projections.tasks           ready-made tasks
projections.layers.base     what a layer rule is
projections.layers.registry the table of rules
projections.layers.linear   linear layers
projections.layers.conv     convolutions
projections.layers.embedding    embedding tables
projections.layers.embedding_bag    tables summed by bag
projections.layers.lora_embedding   low-rank changes of tables
projections.layers.norm     normalisation layers
projections.layers.rms_norm RMS normalisation
projections.layers.attention    torch's attention
projections.layers          all rules
projections.normal_form     weights that a model keeps transposed
projections.heads           attention heads as components of their own
projections.lookups         look-ups inside embeddings that do more
projections.replay          modules run again, example by example
projections.layout          the components of a model
projections.tracing         where the examples are
projections.evaluation_mode no dropout, no statistics of a batch
projections.kernels         kernels that are kept out of the way
projections.capture         gradients of every layer from one backward
projections.completeness    is what layers give all of a gradient?
projections.watch           gradients of a training step, while it happens
projections.directions      products with one gradient, exact or of low rank
projections.columns         what a pass computes for each row
projections.rounds          which rank takes which shard
projections.merging         accumulators of several ranks become one
projections.output_layer    the layer whose outputs are the logits
projections.weight_alignment    along which weights a gradient points
projections.agreement       which gradients point as the others do
projections.features        what goes into a layer, as one vector a row
projections.pass_settings   batches by length, shards, and which components
projections.batch_runs      one batch: a forward, and a backward for each draw
projections.preflight       what is tried on a few rows before a pass
projections.freed_memory    memory that a batch frees, for the next one
projections.passes          one walk over a dataset
projections.checkpoint      where a killed pass goes on
projections.sjlt            sparse random projection
projections.tensorsketch    sparse projection of rows times columns
projections.dense           what dense projections share
projections.rademacher      dense projection by random signs
projections.sides           matrices of a layer's inputs or outputs
projections.kronecker       two-sided projection of each layer
projections.masked          random coordinates, then a sketch of them
projections.selected        components chosen by name
projections.coordinates     gradients as they are
projections.adam_state      the optimizer's moments, by name
projections.adam            directions in which Adam would step
projections.concatenated    several projections side by side
projections.hadamard        the Walsh-Hadamard transform
projections.srht            Hadamard matrices between random signs
projections.gaussian        dense projection by normal numbers
projections.journal         entries that are only ever added
projections.row_types       float32, float16, bfloat16 and int8 rows
projections.shards          what the journal of a store adds up to
projections.column_files    columns mapped from disk, and their damage
projections.store           rows of projected gradients on disk
projections.store_writer    writing a store that survives a kill
projections.stored_rows     rows on disk or in memory, for metrics
projections.store_edits     delete, compact and merge
projections.workers         who works on the parts of a job
projections.encoding        from some rows to their vectors
projections.embeddings      one vector a row, from anything, kept in shards
projections.encoders        from rows to embeddings
projections.best            the best rows so far
projections.row_products    queries times rows as they are kept
projections.search          the best rows for a query
projections.faiss_factory   FAISS indexes without rows, and what trains them
projections.index_parts     what the parts of an index hold
projections.index_files     the files of an index on the disk
projections.disk_index      search by inverted lists on the disk
projections.index_building  part by part, going on, and merging parts
projections.faiss_index     search by any FAISS index
projections.rerank          candidates scored again by stored rows
projections.indexing        from a dataset to a store
projections.queries         from queries to rows like a store's
projections.pass_plan       bytes of a pass before it runs
projections.scores          scores of examples, as a table that travels
projections                 gradients as vectors
influence.base              the seam of attribution on rows; the sign of a score
influence.checkpoints       states of one model
influence.damping           what is added before inversion
influence.gradient_dot      gradient dot product and cosine
influence.trackstar         cosines under a mixed Gram matrix
influence.trak              the kernel of TRAK on a store
influence.kfac_math         Kronecker factors as plain algebra
influence.linear_layers     the linear maps inside gradients
influence.covariances       first pass of K-FAC
influence.decompositions    eigenvectors, by all ranks together
influence.eigenvalues       second pass of EK-FAC
influence.queries           preconditioned gradients of queries
influence.pairwise          scores of pairs, tops, self-influence
influence.curvature_files   eigenvectors and eigenvalues on disk
influence.curvature         fitted curvature, and what it answers
influence.layer_shapes      linear maps as shapes
influence.work              what stages compute, by shape
influence.plan              bytes and operations before anything runs
influence.ekfac             EK-FAC and K-FAC
influence.diagonal          the diagonal, and the identity
influence.parameter_space   parameters as coordinates of vectors
influence.raw_gradients     whole gradients of a few, products with many
influence.gradient_sums     sums over gradients that are not kept
influence.members           rows at several states, and sums of scores
influence.row_influence     influence by a metric on rows
influence.less              cosines of Adam's directions, for subtasks
influence.trak_ensemble     log-odds and several models
influence.tracin            sums of gradient products over checkpoints
influence.datainf           one inverse an example
influence.products          products with means over a dataset
influence.hessian           products with the Hessian
influence.gauss_newton      products with the Gauss-Newton matrix
influence.solver            the seam of solvers
influence.woodbury          few outer products, inverted exactly
influence.mfac              the same as influence
influence.inverse           influence by solving linear systems
influence.preconditioners   cheap approximate inverses
influence.nystroem          a preconditioner from a random sketch
influence.conjugate_gradients   conjugate gradients, many at once
influence.power_iteration   the largest eigenvalue
influence.richardson        steps along residuals
influence.neumann           the Neumann series
influence.lissa             the same on random rows
influence.astra             the same, preconditioned by EK-FAC
influence.arnoldi           the largest eigenvalues, inverted exactly
influence.metagradients     a training run, differentiated by its examples
influence.leave_one_out     linear models without each example
influence.ridge_leave_one_out   ridge regression, in closed form
influence.logistic_leave_one_out    logistic regression, by Newton's method
influence.source            influence along a training run, by segments
influence.implicit_differentiation  a query's loss by hyper-parameters
influence.eigen_index       the coordinates of most curvature
influence.principal         principal directions of gradients
influence.whitening         queries times an inverse curvature
influence.row_gram          Gram matrices of kept coordinates
influence.influence_index   influence at the speed of an index
influence.estimates         a mean and its standard error
influence.lds               does the sum of scores predict retraining?
influence.removal           what removing examples did
influence.detection         are the right examples first?
influence.recipe            how small models are trained
influence.retraining        many small models trained at once
influence.retrained_losses  what retraining did, kept in a folder
influence.bm25              rare words in common
influence.tfidf             cosines of weighted words
influence.embedding_similarity    cosines of embeddings
influence.hidden_similarity    cosines of a layer's inputs
influence.tracin_last_layer    TracIn by the factors of the last layer
influence.representer       logits as sums over examples
influence.label_signed      similarities signed by labels
influence.relatif           influence relative to itself
influence.lexical           candidates by shared words, and a control
influence.components.products   what every component says of pairs
influence.components.passes     the same from a model, in one pass
influence.components.objectives     what a set of components is judged by
influence.components.costs  parameters, bytes and operations
influence.components.sums   values of sets that differ by one
influence.components.search greedy and beam search
influence.components.chosen chosen on one split, reported on another
influence.components.sources    which candidate did a query come from?
influence.components        which components carry influence
influence.retrieval         training examples behind a query
influence                   what an example did to a prediction
selection.base              a selection: what is kept, and why the rest is not
selection.pool              the rows to choose from, and budgets
selection.clusters          k-means
selection.gio.divergence    what a divergence is estimated from
selection.gio.estimates     how far a set is from a target, in four ways
selection.gio.starts        what greedy selection starts from
selection.gio.stopping      when greedy selection stops
selection.gio.greedy        one pick after the other
selection.gio.path          what GIO leaves, and selections from it
selection.gio.selector      gradient information optimisation
selection.gio               rows that bring a set near a target
selection.coverage.neighbours   which rows lie near which
selection.coverage.facility_location    rows that represent all others
selection.coverage.k_center rows that leave no other far away
selection.coverage.dedup    one of rows that say nearly the same
selection.coverage          rows that represent all others
selection.history           what happened to weights over a run
selection.ranks             what all ranks of a run share
selection.reweighting.example_losses    losses of examples and tokens from a model's output
selection.reweighting.loss_curves   which losses deserve weight
selection.reweighting.temperatures  how strongly, and how that changes over a run
selection.reweighting.loss_weights  weights of examples from their losses
selection.reweighting.running   the same in a running training
selection.reweighting.running_losses    micro-batches weighed by the losses of late
selection.reweighting.group_dro weights of groups by their losses
selection.reweighting.norm_sampling rows in proportion to gradient norms
selection.reweighting       weights over examples and groups
selection.keyed             random numbers and orders by seed, name and number
selection.mixtures.base     what samplers read, and what a training loop calls
selection.mixtures.mirror   mirror descent: how signals move weights
selection.mixtures.recorded names, weights and history of a mixture
selection.mixtures.batch_sums   means by domain over batches and ranks
selection.mixtures.decks    rows of a domain in a random order
selection.mixtures.alignments   from inner products to alignments
selection.mixtures.domain_gradients exact alignments, a batch a domain
selection.mixtures.dga      dynamic gradient alignment
selection.mixtures.in_batch alignments read off the training batch
selection.mixtures.distributions    many domains by a few distributions
selection.mixtures.doge     generalisation between domains
selection.mixtures.doremi   excess losses over a reference model
selection.mixtures.odm      a bandit on losses
selection.mixtures.centers  domains as regions of a space
selection.mixtures.importance   shares of a target among clusters
selection.mixtures.regmix   regression on many small runs
selection.mixtures          how much of each domain to train on
selection.samplers.timeline which batch is drawn with which weights
selection.samplers.base     from the number of a batch to its rows
selection.samplers.weighted rows by weights that may change
selection.samplers.selected the rows of a selection in epochs
selection.samplers.domains  the domain of each draw
selection.samplers.mixed    rows of a dataset by a mixture
selection.samplers.torch_samplers   draws as samplers of PyTorch
selection.samplers.sources  rows by number
selection.samplers.stream   several sources as one stream
selection.samplers          samplers and streams for PyTorch
selection.dsir.unicode_classes  letters, spaces and lower case
selection.dsir.ngram_kernels    compiled loops over text
selection.dsir.sha256_kernel    buckets as the reference has them
selection.dsir.tokens       texts as tokens
selection.dsir.ngrams       hashed n-grams
selection.dsir.noise        noise that belongs to a row
selection.dsir.pieces       rows cut into pieces
selection.dsir.top_rows     the largest keys so far
selection.dsir.resampling   rows drawn by their weights
selection.dsir.on_ray       passes over the blocks of a Ray dataset
selection.dsir.passes       counting and weighing text
selection.dsir.estimator    importance resampling towards a target
selection.dsir.report       what a draw did to the data
selection.dsir              importance resampling of text
selection.row_blocks        rows of a store or array in blocks, and groups of them
selection.pruning.values    one score of each row, checked, and the reasons
selection.pruning.ends      keep one end of a score
selection.pruning.window    leave out the hardest, keep the next
selection.pruning.threshold keep what is within bounds
selection.pruning.noise     chances that belong to a row
selection.pruning.strata    keep rows from the whole range of a score
selection.pruning.gumbel    keep rows by chance, the better the likelier
selection.pruning.budgets   budgets of tokens, and quotas of groups
selection.pruning           which rows to keep by one score
selection.scoring.learning  learnt, forgotten, never learnt
selection.scoring.held_out  memorisation, by models that did not see an example
selection.scoring.runs      scores of several seeds or checkpoints
selection.scoring.grand     norms of whole gradients, averaged over models
selection.scoring.nearness  near-duplicates, and distances to centres
selection.scoring.row_agreement rows that point as the others do
selection.scoring           scores of examples that need more than one look
selection.diagnostics.coherence how far gradients add up
selection.diagnostics.layer_coherence   the same of each layer, exactly
selection.diagnostics.moments   sums over rows that directions are found from
selection.diagnostics.opposing  groups that pull in opposite directions
selection.diagnostics.outliers  gradients unlike those of their class
selection.diagnostics.spectrum  in how many directions gradients lie
selection.diagnostics.repeats   repeated inputs, and conflicting labels
selection.diagnostics       what gradients say about a dataset
selection.chosen_rows       chosen rows written as they are met
selection.trainers.state_callback   states in the checkpoints of a trainer
selection.trainers.weighted_loss    a trainer whose loss is weighted
selection.trainers.drawn_rows   a trainer whose rows are drawn
selection.trainers          glue for the trainer of Hugging Face
selection                   which examples to train on
gradsift.figures            figures that follow the colours of a page
gradsift.html               pages that need nothing else
gradsift.shown_rows         examples as people are shown them
gradsift.digits             job 1 of the demo: find wrong labels, and prune
gradsift.corpus             text that every Python ships
gradsift.language_model     a small language model, trained in seconds
gradsift.passages           job 2 of the demo: the text behind a prediction
gradsift.mixing             job 3 of the demo: a mixture that follows a target
gradsift.demo               the three jobs, a page and a summary
gradsift.sections           parts of a page
gradsift.direction_sections what directions of gradients say, as parts of a page
gradsift.diagnosis          what the gradients in a store say of a dataset
gradsift.report             a page about scores or a store
gradsift.explain            all that is known of one example
gradsift.terminal           the demo's tables on a terminal
gradsift.spreading          a model spread over the ranks of a launcher
gradsift.models             models and tasks from a folder
gradsift.clusters           Ray clusters, and data that they read
gradsift.machines           how fast a machine computes what plans count
gradsift.projecting         projections by name, and Adam's state from a file
gradsift.attribution        methods of attribution by name
gradsift.commands.options   what commands share
gradsift.commands.indexing  gradsift index
gradsift.commands.retrieval gradsift retrieve
gradsift.commands.attributing    gradsift attribute
gradsift.commands.scoring   gradsift score
gradsift.commands.stores    verify, delete, compact and merge stores
gradsift.commands.list_indexes  the index of a large store
gradsift.commands.components    gradsift components
gradsift.commands.embedding where vectors of rows come from
gradsift.commands.choosing  what commands that choose rows share
gradsift.commands.pruning   gradsift prune
gradsift.commands.gio       gradsift gio
gradsift.commands.covering  gradsift cover
gradsift.commands.deduplication gradsift dedup
gradsift.commands.dsir      gradsift dsir
gradsift.commands.planning  gradsift plan
gradsift.commands.explaining    gradsift explain
gradsift.commands.pages     gradsift demo and report
gradsift.commands           the table of commands
gradsift.cli                the command line
gradsift                    the application
"""

ORDER = [line.split()[0] for line in READING_ORDER.strip().splitlines()]


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Names of our modules that a file imports, anywhere in it."""
    known = modules()
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = inner & set(known)
            found |= submodules
            if len(submodules) < len(inner):
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in PACKAGES}


def test_every_module_has_its_place_in_the_reading_order() -> None:
    assert sorted(ORDER) == sorted(modules())


def test_a_module_imports_only_what_stands_above_it() -> None:
    wrong = [
        f"{name} imports {used}"
        for name, path in modules().items()
        for used in imports(path)
        if ORDER.index(used) >= ORDER.index(name)
    ]
    assert not wrong


def test_other_packages_are_imported_through_their_front_door() -> None:
    wrong = [
        f"{name} imports {used}"
        for name, path in modules().items()
        for used in imports(path)
        if used.split(".")[0] != name.split(".")[0] and "." in used
    ]
    assert not wrong


def test_the_readme_names_modules_that_there_are() -> None:
    text = (ROOT / "README.md").read_text()
    table = text.partition("## Methods")[2].partition("## How good")[0]
    named, package = [], ""
    for line in table.splitlines():
        cells = line.split("|")
        for name in re.findall(r"`([a-z_.]+)`", cells[2] if len(cells) > 4 else ""):
            package = name.rpartition(".")[0] if not name.startswith(".") else package
            named.append(package + name if name.startswith(".") else name)
    assert len(named) > 50
    assert [name for name in named if name not in ORDER] == []
