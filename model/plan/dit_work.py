"""Work of the transformer and the audio encoder on one rank.

The formulas follow `dit`, `layers` and the contracts of the ops; a test holds their products to
what PyTorch counts. Rank 0 has the largest shares, so the others wait for it.
"""

from dataclasses import dataclass

from livetalk_kernels.gpus import BEST
from livetalk_kernels.runtime.mesh import Mesh, shares
from livetalk_kernels.spec import ACTIVATIONS, ATTENTION, CROSS, LINEARS, NORMS

from ..config import CHUNK_FRAMES, AudioEncoderConfig, DiTConfig
from ..memory.dit import AUDIO_SECONDS
from .work import ALL, Attention, Parts, Product, Work

ROPE_BYTES = 36  # an element of q or k through complex128: bf16 -> fp64, times the table, -> bf16
ROPE_FP64 = 7  # operations an element, conversions counted as one multiply-add each
LAUNCHES = 19  # of a block: 8 products, 3 attentions, 6 norms, GELU, one copy
FP32 = 4
VIDEO_FPS = 25
OUTPUT_PATCH = 4  # pixels of a latent in a token


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a system does, and what it does again; the defaults are livetalk's.

    Attributes:
        once: Constants are made once: text and image K/V, audio K/V of a chunk, modulation, RoPE
            tables, decoder state. Otherwise in every step, and on every rank all of them.
        fused_rope: Norm and rotation are one kernel in fp32; otherwise the rotation runs in
            complex128 outside the compiler.
        attention: Kernel of self-attention, a key of `livetalk_kernels.gpus.Gpu.attention`.
        overlap: Heads are exchanged in groups beside attention, and audio is encoded on a side
            stream.
        tiles: The VAE runs on overlapping tiles that are cropped; otherwise halos are exchanged.
        pageable: Frames go to the host as fp32 through pageable memory.
        audio: The model listens. Wan2.1 does not.
        forwards: Of the model in a step; 2 with classifier-free guidance.
        fuse_bias: The VAE's residual blocks add their biases in other passes.
    """

    once: bool = True
    fused_rope: bool = True
    attention: str = BEST
    overlap: bool = True
    tiles: bool = False
    pageable: bool = False
    audio: bool = True
    forwards: int = 1
    fuse_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class Share:
    """What the busiest rank has.

    Attributes:
        tokens: Rows of the sequence.
        block: Rows of its Ulysses group, which its heads attend with.
        heads: Heads in self-attention.
        total: Tokens of all ranks.
    """

    tokens: int
    block: int
    heads: int
    total: int

    @classmethod
    def of(cls, mesh: Mesh, tokens: int, heads: int) -> "Share":
        """Rank 0's part."""
        sizes = shares(tokens, mesh.world)
        return cls(
            tokens=sizes[0],
            block=sum(sizes[: mesh.ulysses]),
            heads=shares(heads, mesh.ulysses)[0],
            total=tokens,
        )


def step_work(
    config: DiTConfig,
    grid: tuple[int, int, int],
    share: Share,
    schedule: Schedule,
    *,
    itemsize: int,
    fp8: bool = False,
) -> dict[str, Work]:
    """Work of one forward of the transformer.

    Args:
        config: Shape of the model.
        grid: Tokens in frames, rows and columns.
        share: Of the rank.
        schedule: What is done.
        itemsize: Bytes of a number.
        fp8: The blocks' linear layers are in FP8.
    """
    rows, dim, ffn, layers = share.tokens, config.dim, config.ffn_dim, config.num_layers
    elements = rows * dim
    product = _Products(rows=rows, itemsize=itemsize, fp8=fp8)
    projections = (3 * dim, dim, dim, dim) if schedule.once else (dim,) * 6
    if schedule.audio:
        projections = (*projections, dim, dim)
    linears = [product(columns, dim, layers) for columns in projections]
    linears += [product(ffn, dim, layers), product(dim, ffn, layers)]
    patch = OUTPUT_PATCH * config.out_dim
    linears.append(Product(rows=rows, columns=dim, depth=patch, itemsize=itemsize))
    linears.append(Product(rows=rows, columns=patch, depth=dim, itemsize=FP32))
    heads = {"heads": config.num_heads, "width": config.head_dim, "itemsize": itemsize}
    own = heads | {"heads": share.heads}
    cross = [
        Attention(queries=rows, keys=config.text_len, count=layers, **heads),
        Attention(queries=rows, keys=config.image_len, count=layers, **heads),
    ]
    if schedule.audio:
        cross.append(Attention(queries=rows, keys=config.context_tokens, count=layers, **heads))
    seams = 4 if schedule.audio else 3
    seam = elements * (3 * itemsize + 1 if fp8 else 4 * itemsize)
    norms = layers * (seams * seam + elements * 6 * itemsize) + elements * 4 * itemsize
    rotated = 0 if schedule.fused_rope else layers * 2 * elements
    quantized = (seams - 1) * elements * (itemsize + 1) if fp8 else 0  # results of attention
    gelu = 0 if fp8 else 2 * rows * ffn * itemsize  # in FP8 part of the product
    parts = {
        LINEARS: Work(products=tuple(linears)),
        ATTENTION: Work(
            attentions=(Attention(queries=share.block, keys=share.total, count=layers, **own),)
        ),
        CROSS: Work(attentions=tuple(cross)),
        NORMS: Work(
            bytes=float(norms + layers * quantized + rotated * ROPE_BYTES),
            fp64=float(rotated * ROPE_FP64),
            calls=layers * (LAUNCHES + (3 if fp8 else 0) + (0 if schedule.fused_rope else 8)),
        ),
        ACTIVATIONS: Work(bytes=float(layers * gelu)),
    }
    if not schedule.once:
        again = avatar_work(config, itemsize=itemsize) + schedule_work(config)
        if schedule.audio:
            again += audio_work(config, frames=grid[0], itemsize=itemsize)
        parts[LINEARS] += again
    return parts


@dataclass(frozen=True, kw_only=True)
class _Products:
    rows: int
    itemsize: int
    fp8: bool

    def __call__(self, columns: int, depth: int, count: int) -> Product:
        """``count`` linear layers of the blocks."""
        return Product(
            rows=self.rows,
            columns=columns,
            depth=depth,
            count=count,
            itemsize=self.itemsize,
            fp8=self.fp8,
        )


def avatar_work(config: DiTConfig, *, itemsize: int) -> Work:
    """Embedding of text and image, and their keys and values in all layers; whole on each rank."""
    dim, text, image = config.dim, config.text_len, config.image_len
    products = (
        Product(rows=text, columns=dim, depth=config.text_dim, itemsize=itemsize),
        Product(rows=text, columns=dim, depth=dim, itemsize=itemsize),
        Product(rows=image, columns=config.image_dim, depth=config.image_dim, itemsize=itemsize),
        Product(rows=image, columns=dim, depth=config.image_dim, itemsize=itemsize),
        Product(rows=text, columns=dim, depth=dim, count=2 * config.num_layers, itemsize=itemsize),
        Product(rows=image, columns=dim, depth=dim, count=2 * config.num_layers, itemsize=itemsize),
    )
    normed = 2 * (text + image) * dim * itemsize * config.num_layers
    return Work(products=products, bytes=float(normed), calls=6.0 * config.num_layers)


def condition_work(config: DiTConfig, rows: int, *, itemsize: int) -> Work:
    """Patch embedding of the constant channels, of so many tokens."""
    depth = OUTPUT_PATCH * (config.in_dim - config.out_dim)
    return Work(
        products=(Product(rows=rows, columns=config.dim, depth=depth, itemsize=itemsize),), calls=3
    )


def audio_work(config: DiTConfig, *, frames: int, itemsize: int) -> Work:
    """Audio tokens, and their keys and values of so many latent frames in all layers."""
    hidden, features = config.intermediate_dim, config.audio_features
    all_frames = 1 + (CHUNK_FRAMES - 1) // config.vae_scale
    entries = config.audio_window + config.vae_scale - 1
    shapes = (
        (1, hidden, config.audio_window * features),
        (all_frames - 1, hidden, entries * features),
        (all_frames, hidden, hidden),
        (all_frames, config.context_tokens * config.output_dim, hidden),
    )
    products = [
        Product(rows=rows, columns=columns, depth=depth, itemsize=itemsize)
        for rows, columns, depth in shapes
    ]
    products.append(
        Product(
            rows=frames * config.context_tokens,
            columns=2 * config.dim,
            depth=config.output_dim,
            count=config.num_layers,
            itemsize=itemsize,
        )
    )
    return Work(products=tuple(products), calls=10.0 + config.num_layers)


def schedule_work(config: DiTConfig) -> Work:
    """Time embedding and modulation of one step, in fp32."""
    dim = config.dim
    shapes = ((dim, config.freq_dim), (dim, dim), (6 * dim, dim))
    return Work(
        products=tuple(
            Product(rows=1, columns=columns, depth=depth, itemsize=FP32)
            for columns, depth in shapes
        ),
        calls=12,
    )


def audio_encoder_work(config: AudioEncoderConfig) -> Parts:
    """The encoder over its whole window of sound, in fp32."""
    length, inputs = AUDIO_SECONDS * config.sample_rate, 1
    products = []
    for outputs, kernel, stride in zip(
        config.conv_dim, config.conv_kernel, config.conv_stride, strict=True
    ):
        length = (length - kernel) // stride + 1
        products.append(_fp32(length, outputs, inputs * kernel))
        inputs = outputs
    rows, width = VIDEO_FPS * AUDIO_SECONDS, config.width  # features come at the video's rate
    group = width // config.pos_conv_groups
    products += [
        _fp32(rows, width, group * config.pos_conv_kernel),
        _fp32(rows, width, inputs),
        _fp32(rows, width, width, 4 * config.layers),
        _fp32(rows, config.ffn_dim, width, 2 * config.layers),
    ]
    attention = Attention(
        queries=rows,
        keys=rows,
        heads=config.heads,
        width=width // config.heads,
        count=config.layers,
        itemsize=FP32,
    )
    calls = 16.0 * config.layers + 30
    return {ALL: Work(products=tuple(products), attentions=(attention,), calls=calls)}


def _fp32(rows: int, columns: int, depth: int, count: int = 1) -> Product:
    return Product(rows=rows, columns=columns, depth=depth, count=count, itemsize=FP32)
