"""What the stages of a job compute, counted by shape, before anything runs.

Letters: ``t`` positions, ``i`` inputs of a layer, ``o`` outputs, ``b`` positions of a batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from influence.layer_shapes import LayerShape, ModelShape

FLOAT = 4  # bytes of a number
# Times that elementwise operations of a forward and backward read or write each input and
# output of a linear map, and each logit; measured on models like Llama on a CPU.
MOVES = 4.0


@dataclass(frozen=True)
class Product:
    """Matrix products of one shape, ``rows x inner`` times ``inner x columns``.

    Args:
        rows: Rows of the left factor.
        inner: Its columns.
        columns: Columns of the right factor.
        operations: Multiply-adds, over all products of this shape.
        together: How many of them one call computes.
    """

    rows: int
    inner: int
    columns: int
    operations: float
    together: int = 1


@dataclass(frozen=True)
class Work:
    """What is computed.

    Args:
        products: Matrix products by shape.
        moved: Bytes that elementwise operations read and write.
        scattered: Numbers that are added to where an index says.
        decompositions: Widths of symmetric matrices whose eigenvectors are found, in float64.
    """

    products: tuple[Product, ...] = ()
    moved: float = 0.0
    scattered: float = 0.0
    decompositions: tuple[int, ...] = ()

    def __add__(self, other: "Work") -> "Work":
        """Return both."""
        return Work(
            self.products + other.products,
            self.moved + other.moved,
            self.scattered + other.scattered,
            self.decompositions + other.decompositions,
        )

    def times(self, count: float) -> "Work":
        """Return the same, several times; decompositions are made once."""
        scaled = tuple(replace(p, operations=p.operations * count) for p in self.products)
        return Work(scaled, self.moved * count, self.scattered * count, self.decompositions)

    @property
    def operations(self) -> float:
        """Multiply-adds, of the decompositions about 9 a cube."""
        cubes = sum(9.0 * width**3 for width in self.decompositions)
        return sum(product.operations for product in self.products) + cubes


def forward_and_backward(model: ModelShape, *, batch: int, weights: bool) -> Work:
    """Return what a forward and backward of one example computes.

    Args:
        model: Its shapes.
        batch: Examples that run together.
        weights: Whether gradients of the weights are formed too, as in a training step.
    """
    products, moved = [], 0.0
    for layer in (*model.layers, *model.others):
        rows = max(1, round(layer.positions * batch))
        count = layer.positions * layer.size
        products.append(Product(rows, layer.num_in, layer.num_out, count))
        products.append(Product(rows, layer.num_out, layer.num_in, count))
        if weights:
            products.append(Product(layer.num_in, rows, layer.num_out, count))
        moved += layer.positions * (layer.num_in + layer.num_out)
    tokens = max((layer.positions for layer in model.layers), default=0.0)
    for width in model.attention:  # scores and values, forward, again, and backward
        products.append(Product(round(tokens), 64, round(tokens), 7 * tokens**2 * width / 2))
    return Work(tuple(products), MOVES * FLOAT * moved)


def formed_gradients(layers: Iterable[LayerShape]) -> Work:
    """Return what it takes to form the gradient of each layer of one example."""
    products = tuple(
        Product(
            layer.num_out,
            max(1, round(layer.positions)),
            layer.num_in,
            layer.positions * layer.size,
        )
        for layer in layers
    )
    return Work(products, moved=2 * FLOAT * sum(layer.size for layer in layers))


def sketched_gradients(model: ModelShape, *, batch: int) -> Work:
    """Return what it takes to form and sketch the gradients of one example in one pass."""
    entries = float(sum(layer.size for layer in model.layers))
    walk = forward_and_backward(model, batch=batch, weights=False)
    return walk + formed_gradients(model.layers) + Work(scattered=entries)


def matrix_products(shapes: Sequence[tuple[int, int, int]], operations: float) -> Work:
    """Return products that share some operations equally between shapes."""
    return Work(tuple(Product(*shape, operations / len(shapes)) for shape in shapes))
