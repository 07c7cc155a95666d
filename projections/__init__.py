"""Gradients as vectors: capture, compress, keep, search."""

from projections.adam import AdamDirected, AdamScaled, adam_direction, less_direction
from projections.adam_state import AdamState, Moments, read_adam_state
from projections.agreement import Agreement, GradientTotal, cosines_with_others
from projections.base import (
    Accumulator,
    Batch,
    Column,
    Projector,
    Provenance,
    RowIndex,
    Summed,
    Table,
    TopK,
    concatenate_top,
)
from projections.best import BestRows
from projections.capture import Capture
from projections.checkpoint import FolderCheckpoint
from projections.checks import (
    check_at_least,
    check_between,
    check_not_empty,
    check_one_of,
    matches,
    require,
)
from projections.columns import GradientNorm, Sketch, Statistic
from projections.components import Component, Parameter
from projections.concatenated import Concatenated
from projections.coordinates import Coordinates, coordinates
from projections.data import Rows, as_ids, as_rows, bytes_of, flatten_batches
from projections.directions import Direction, GradientSum
from projections.disk_index import DiskIndex
from projections.embeddings import Embeddings, as_embeddings, embed
from projections.encoders import (
    ColumnEncoder,
    FittedTfidfSVD,
    HiddenStates,
    SentenceEncoder,
    TfidfSVD,
    texts_of,
)
from projections.encoding import Encoder
from projections.errors import (
    ConvergenceError,
    DataError,
    GradsiftError,
    LostRankError,
    NonDeterministicError,
    NonFiniteError,
    StoreMismatchError,
    UnsupportedLayerError,
)
from projections.factors import Formed, OuterProducts, TableRows, Term, Vectors
from projections.faiss_index import FaissIndex, faiss_beside
from projections.features import LayerInputs
from projections.files import read_json, replacing, write_json
from projections.fingerprint import describe, fingerprint_model
from projections.gaussian import Gaussian, normal_entries
from projections.heads import HeadSplit, find_heads, head_slots
from projections.index_building import build_disk_index, merge_parts
from projections.indexing import append_gradients, index_gradients
from projections.inner_products import compact, pair_products, worth_forming
from projections.kronecker import Kronecker, KroneckerBlock, random_kronecker
from projections.labels import Labels
from projections.layout import Layout, find_components
from projections.masked import Masked
from projections.normal_form import exchange_if_transposed
from projections.output_layer import output_layer
from projections.parallel import ordered_map
from projections.pass_plan import PassPlan, plan_pass
from projections.pass_settings import PassSettings, pack
from projections.passes import run_pass
from projections.per_example import Gradient, examples_of
from projections.philox import keyed_words, uniforms
from projections.progress import show_progress, track
from projections.queries import project_gradients, query_rows
from projections.rademacher import Rademacher, sign_entries
from projections.ranks import Ranks, alone, current_ranks
from projections.ray_data import check_ray_arguments, is_on_ray, map_on_ray
from projections.records import compressing, read_dataset, write_dataset
from projections.rerank import Reranked
from projections.scores import Scores, read_parquet
from projections.search import SearchIndex
from projections.selected import Selected
from projections.sharded import is_sharded
from projections.sides import GivenSide, RandomSide, Side
from projections.sjlt import SJLT
from projections.srht import SRHT
from projections.store import GradientStore
from projections.store_edits import compact_store, delete_rows, merge_stores
from projections.store_writer import StoreWriter
from projections.stored_rows import MemoryRows, StoredRows
from projections.streams import without_compression
from projections.task import QueryTask, Task, to_device
from projections.tasks import (
    CausalLM,
    Classification,
    LogOdds,
    MaskedLM,
    Regression,
    Seq2SeqLM,
    SequenceClassification,
)
from projections.tasks.classification import LABEL_COLUMNS
from projections.tensorsketch import TensorSketch
from projections.text_blocks import Block, ray_block
from projections.text_columns import TextBatch, TextColumns
from projections.texts import Texts, as_texts
from projections.watch import Watch
from projections.weight_alignment import WeightAlignment, summarize_alignment
from projections.workers import HERE, ON_RAY, OnRay, Workers

__all__ = [
    "HERE",
    "LABEL_COLUMNS",
    "ON_RAY",
    "SJLT",
    "SRHT",
    "Accumulator",
    "AdamDirected",
    "AdamScaled",
    "AdamState",
    "Agreement",
    "Batch",
    "BestRows",
    "Block",
    "Capture",
    "CausalLM",
    "Classification",
    "Column",
    "ColumnEncoder",
    "Component",
    "Concatenated",
    "ConvergenceError",
    "Coordinates",
    "DataError",
    "Direction",
    "DiskIndex",
    "Embeddings",
    "Encoder",
    "FaissIndex",
    "FittedTfidfSVD",
    "FolderCheckpoint",
    "Formed",
    "Gaussian",
    "GivenSide",
    "Gradient",
    "GradientNorm",
    "GradientStore",
    "GradientSum",
    "GradientTotal",
    "GradsiftError",
    "HeadSplit",
    "HiddenStates",
    "Kronecker",
    "KroneckerBlock",
    "Labels",
    "LayerInputs",
    "Layout",
    "LogOdds",
    "LostRankError",
    "Masked",
    "MaskedLM",
    "MemoryRows",
    "Moments",
    "NonDeterministicError",
    "NonFiniteError",
    "OnRay",
    "OuterProducts",
    "Parameter",
    "PassPlan",
    "PassSettings",
    "Projector",
    "Provenance",
    "QueryTask",
    "Rademacher",
    "RandomSide",
    "Ranks",
    "Regression",
    "Reranked",
    "RowIndex",
    "Rows",
    "Scores",
    "SearchIndex",
    "Selected",
    "SentenceEncoder",
    "Seq2SeqLM",
    "SequenceClassification",
    "Side",
    "Sketch",
    "Statistic",
    "StoreMismatchError",
    "StoreWriter",
    "StoredRows",
    "Summed",
    "Table",
    "TableRows",
    "Task",
    "TensorSketch",
    "Term",
    "TextBatch",
    "TextColumns",
    "Texts",
    "TfidfSVD",
    "TopK",
    "UnsupportedLayerError",
    "Vectors",
    "Watch",
    "WeightAlignment",
    "Workers",
    "adam_direction",
    "alone",
    "append_gradients",
    "as_embeddings",
    "as_ids",
    "as_rows",
    "as_texts",
    "build_disk_index",
    "bytes_of",
    "check_at_least",
    "check_between",
    "check_not_empty",
    "check_one_of",
    "check_ray_arguments",
    "compact",
    "compact_store",
    "compressing",
    "concatenate_top",
    "coordinates",
    "cosines_with_others",
    "current_ranks",
    "delete_rows",
    "describe",
    "embed",
    "examples_of",
    "exchange_if_transposed",
    "faiss_beside",
    "find_components",
    "find_heads",
    "fingerprint_model",
    "flatten_batches",
    "head_slots",
    "index_gradients",
    "is_on_ray",
    "is_sharded",
    "keyed_words",
    "less_direction",
    "map_on_ray",
    "matches",
    "merge_parts",
    "merge_stores",
    "normal_entries",
    "ordered_map",
    "output_layer",
    "pack",
    "pair_products",
    "plan_pass",
    "project_gradients",
    "query_rows",
    "random_kronecker",
    "ray_block",
    "read_adam_state",
    "read_dataset",
    "read_json",
    "read_parquet",
    "replacing",
    "require",
    "run_pass",
    "show_progress",
    "sign_entries",
    "summarize_alignment",
    "texts_of",
    "to_device",
    "track",
    "uniforms",
    "without_compression",
    "worth_forming",
    "write_dataset",
    "write_json",
]
