"""What the transformer and the audio encoder hold while they run: their steps in bytes.

The order in which tensors come and go is that of `dit`, `layers` and `encoders.audio`.
"""

from dataclasses import dataclass

from livetalk_kernels.precision import FP8_BLOCK

from ..config import AudioEncoderConfig, DiTConfig
from .ledger import FP32, Ledger, Machine, attention_workspace

AUDIO_SECONDS = 8  # `AudioStream`'s window
_FP8_ROWS, _FP8_GROUP = 1024, 16  # csrc/bindings/fp8_gemm_cpu.cpp: rows widened at a time


@dataclass(frozen=True, kw_only=True)
class Split:
    """How ranks share the tokens of self-attention.

    Attributes:
        ulysses: Ranks that exchange heads.
        ring: Groups of them that pass keys and values around.
    """

    ulysses: int = 1
    ring: int = 1

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.ulysses * self.ring


ONE_RANK = Split()


@dataclass(frozen=True, kw_only=True)
class DiTMemory:
    """Sizes of a step on one rank.

    Attributes:
        config: Shape of the transformer.
        machine: Where it runs.
        fp8: Linear layers of the blocks are in FP8.
        tokens: Tokens of this rank.
        frames: Latent frames whose audio this rank's tokens hear.
        text_rows: Text keys, one of them for all padding.
        split: The ranks.
    """

    config: DiTConfig
    machine: Machine
    fp8: bool
    tokens: int
    frames: int
    text_rows: int
    split: Split

    @property
    def hidden(self) -> int:
        """Bytes of [tokens, D]."""
        return self.tokens * self.config.dim * self.machine.item

    def quantized(self, width: int, blocks: int = 1) -> int:
        """Bytes of [tokens, width] in FP8 with its scales."""
        return self.tokens * (width + FP32 * blocks)

    @property
    def normed(self) -> int:
        """Bytes of [tokens, D] as the linear layers take it."""
        return self.quantized(self.config.dim) if self.fp8 else self.hidden

    @property
    def audio_kv(self) -> int:
        """Bytes of keys and values of the audio in all layers."""
        config = self.config
        voices = self.frames * config.context_tokens
        return config.num_layers * 2 * voices * config.dim * self.machine.item

    @property
    def context_kv(self) -> int:
        """Bytes of keys and values of text and image in all layers."""
        config = self.config
        rows = self.text_rows + config.image_len
        return config.num_layers * 2 * rows * config.dim * self.machine.item

    def prepare_steps(self, ledger: Ledger) -> None:
        """`DiT.prepare_steps`: 16-bit weights are widened for it."""
        if self.machine.item < FP32:
            ledger.use(6 * self.config.dim**2 * FP32)

    def prepare_context(self, ledger: Ledger) -> None:
        """`DiT.prepare_context`, whose result is held."""
        config, item, rows = self.config, self.machine.item, self.text_rows
        padded = ledger.take(rows * config.text_dim * item)
        if item < FP32:
            ledger.use(padded)  # before it was padded
        text, image = (n * config.dim * item for n in (rows, config.image_len))
        ledger.use(self.machine.product(rows, config.text_dim, config.dim))
        ledger.take(text)
        ledger.take(text)
        ledger.use(text)
        ledger.free(text, padded)
        ledger.take(image)
        ledger.take(self.context_kv)
        ledger.use(text)  # keys before their norm
        if self.fp8 and self.machine.is_cpu:
            ledger.use(rows * config.dim * FP32)
        ledger.free(text, image)

    def prepare_audio(self, ledger: Ledger) -> None:
        """`DiT.prepare_audio` of the next chunk, while the last chunk's result is still there."""
        config, item = self.config, self.machine.item
        windows = config.audio_window + (self.frames - 1) * config.vae_scale * config.audio_window
        if item < FP32:
            ledger.take(windows * config.audio_features * item)
        windows_wide = (config.audio_window + config.vae_scale - 1) * config.audio_features
        ledger.use(self.machine.product(self.frames - 1, windows_wide, config.intermediate_dim))
        tokens = config.context_tokens * config.output_dim  # of a frame
        ledger.use(self.machine.product(self.frames, config.intermediate_dim, tokens))
        ledger.take(self.frames * tokens * item)
        ledger.take(self.audio_kv)

    def step(self, ledger: Ledger) -> None:
        """`DiT.forward`; the first block's input is kept by the caller, later ones' are not."""
        hidden, normed = self.hidden, self.normed
        patches = ledger.take(hidden)
        y = ledger.take(hidden)
        ledger.free(patches)
        x = h = 0
        for _ in range(2):  # all blocks but the first are alike
            for layer in (self._self_attention, self._cross_attention, self._audio, self._ffn):
                new_x, new_h = ledger.take(hidden), ledger.take(normed)
                ledger.free(x, h)
                x, h = new_x, new_h
                layer(ledger)
                ledger.free(y)
                y = hidden
        last = [ledger.take(hidden), ledger.take(hidden)]
        if self.machine.item < FP32:
            last.append(ledger.take(self.tokens * self.config.dim * FP32))
        ledger.free(x, y, h, *last)

    def _linear(self, ledger: Ledger, inputs: int, out: int, *, quantized: bool = False) -> int:
        """A linear layer with a result of ``out`` bytes, which is held; its input may be FP8."""
        q = 0 if quantized or not self.fp8 else ledger.take(self.quantized(inputs))
        ledger.take(out)
        if self.fp8:
            ledger.use(self._widened(inputs))
        else:
            outputs = out // (self.tokens * self.machine.item)
            ledger.use(self.machine.product(self.tokens, inputs, outputs))
        ledger.free(q)
        return out

    def _widened(self, inputs: int) -> int:
        """Bytes of the rows that the compiled FP8 product has in fp32."""
        if not self.machine.is_cpu:
            return 0
        rows = -(-self.tokens // -(-self.tokens // _FP8_ROWS))
        return FP32 * -(-rows // _FP8_GROUP) * _FP8_GROUP * (inputs + inputs % 2)

    def _self_attention(self, ledger: Ledger) -> None:
        config, hidden, split = self.config, self.hidden, self.split
        own = [self._linear(ledger, config.dim, 3 * hidden, quantized=True)]
        own += [ledger.take(hidden), ledger.take(hidden)]  # q, k: normed, rotated
        exchanged = 0
        if split.ulysses > 1:  # q, k, v of all the group's tokens for some heads, and the result
            exchanged += 4 * hidden
        if split.ring > 1:  # keys and values that come and go, another part's result and LSE
            exchanged += 5 * hidden + self.tokens * config.num_heads * FP32
        ledger.take_workspace(exchanged)
        own.append(ledger.take(hidden + self.tokens * config.num_heads * FP32))  # out, lse
        keys = self.tokens * split.ulysses
        heads = -(-config.num_heads // split.ulysses)
        ledger.use(attention_workspace(self.machine, heads, config.head_dim, keys))
        ledger.free_workspace(exchanged)
        self._linear(ledger, config.dim, hidden)
        ledger.free(*own)

    def _cross_attention(self, ledger: Ledger) -> None:
        config, hidden = self.config, self.hidden
        projected = self._linear(ledger, config.dim, hidden, quantized=True)
        own = [ledger.take(hidden)]
        ledger.free(projected)
        own.append(ledger.take(hidden))
        if self.machine.is_cpu:
            keys = (config.image_len, self.text_rows)
            ledger.use(attention_workspace(self.machine, config.num_heads, config.head_dim, *keys))
        else:
            ledger.use(hidden)  # the text's part beside the image's
        self._linear(ledger, config.dim, hidden)
        ledger.free(*own)

    def _audio(self, ledger: Ledger) -> None:
        config, hidden = self.config, self.hidden
        own = [self._linear(ledger, config.dim, hidden, quantized=True), ledger.take(hidden)]
        units = config.num_heads * self.frames
        keys = config.context_tokens
        ledger.use(attention_workspace(self.machine, units, config.head_dim, keys))
        self._linear(ledger, config.dim, hidden)
        ledger.free(*own)

    def _ffn(self, ledger: Ledger) -> None:
        config, item = self.config, self.machine.item
        wide = config.ffn_dim
        if self.fp8 and wide % FP8_BLOCK == 0:
            inner = ledger.take(self.quantized(wide, wide // FP8_BLOCK))
            ledger.use(self._widened(config.dim))
            self._linear(ledger, wide, self.hidden, quantized=True)
            ledger.free(inner)
            return
        size = self.tokens * wide * item
        self._linear(ledger, config.dim, size, quantized=True)
        activated = ledger.take(size)
        ledger.free(size)
        self._linear(ledger, wide, self.hidden)
        ledger.free(activated)


def audio_encoder_bytes(config: AudioEncoderConfig) -> int:
    """Bytes of wav2vec2's weights, all fp32, its weight norm folded."""
    inputs, extractor = 1, 0
    for outputs, kernel in zip(config.conv_dim, config.conv_kernel, strict=True):
        extractor += inputs * outputs * kernel + (outputs if config.conv_bias else 0)
        inputs = outputs
    normed = config.conv_dim if config.conv_norm == "layer" else config.conv_dim[:1]
    extractor += 2 * sum(normed)
    width, ffn = config.width, config.ffn_dim
    projection = 2 * inputs + inputs * width + width
    position = width * (width // config.pos_conv_groups) * config.pos_conv_kernel + width
    layer = 4 * (width**2 + width) + 2 * width * ffn + width + ffn + 4 * width
    return FP32 * (extractor + projection + position + 2 * width + config.layers * layer)


def encode_audio(config: AudioEncoderConfig, machine: Machine, ledger: Ledger) -> None:
    """`AudioEncoder.embed` of the whole window: the convolutions, by far the longest tensors."""
    length, channels = AUDIO_SECONDS * config.sample_rate, 1
    x = ledger.take(length * FP32)
    stages = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    for index, (outputs, kernel, stride) in enumerate(stages):
        length = (length - kernel) // stride + 1
        out = length * outputs * FP32
        copy = 0
        if machine.is_cpu and index:  # oneDNN orders what has many channels anew, and the weight
            copy = ledger.take_workspace(x + channels * outputs * kernel * FP32)
        ledger.take(out)
        ledger.free_workspace(copy)
        if machine.is_cpu:  # its result is put back into PyTorch's order
            ledger.use(out)
        ledger.free(x)
        normed = config.conv_norm == "layer" or not index
        for _ in range(2 if normed else 1):  # a norm where there is one, and the activation
            ledger.take(out)
            ledger.free(out)
        x, channels = out, outputs
    ledger.free(x)
