"""Every loader of a file that a user gives, with good files to start from."""

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageCms
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from livetalk_kernels.inspection import baseline
from livetalk_kernels.inspection.report import Report, as_json
from livetalk_kernels.spec import Case
from livetalk_kernels.tuning import Choice, MachineEntry, Tuning, TuningKey
from livetalk_model.avatar import Avatar, load_embedding
from livetalk_model.config import AudioEncoderConfig, DiTConfig
from livetalk_model.encoders.text import load_tokenizer
from livetalk_model.media.audio import AudioReader
from livetalk_model.media.image import load_portrait
from livetalk_model.own import OwnModel
from livetalk_model.plan.recorded import Observed, read_recorded
from livetalk_model.profile.compare import read_report
from livetalk_model.train.data.clips import Entry, Index, read_index
from livetalk_model.weights.manifest import read_manifest
from livetalk_model.weights.tensor_files import open_weights

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDED = REPOSITORY / "profiles" / "data"
CPU = torch.device("cpu")
SPECS = REPOSITORY / "tests" / "data" / "spec"


@dataclass(frozen=True, kw_only=True)
class Loader:
    """One kind of file.

    Attributes:
        read: Reads a file wholly, as the product does; what it cannot use is a UserError.
        seeds: File name -> contents of a good file; the name determines the format.
        is_json: Values inside the file are spoiled as well as its bytes.
    """

    read: Callable[[Path], object]
    seeds: dict[str, bytes]
    is_json: bool = False


def loaders() -> dict[str, Loader]:
    """Build all valid files."""
    return {
        "portrait": Loader(read=load_portrait, seeds=_pictures()),
        "sound": Loader(read=_read_sound, seeds=_sounds()),
        "avatar": Loader(read=Avatar.load, seeds={"a.avatar": _avatar()}),
        "embedding": Loader(
            read=lambda path: load_embedding(path, "context"),
            seeds={"e.safetensors": save({"context": torch.randn(3, 4096)})},
        ),
        "safetensors": Loader(read=_read_weights, seeds={"w.safetensors": save(_weights())}),
        "pth": Loader(read=_read_weights, seeds={"w.pth": _pth()}),
        "index": Loader(
            read=_read_shards, seeds={"w.safetensors.index.json": _index()}, is_json=True
        ),
        "clips": Loader(read=read_index, seeds={"index.json": _clips()}, is_json=True),
        "config": Loader(
            read=DiTConfig.from_json,
            seeds={"config.json": (SPECS / "tiny_a.config.json").read_bytes()},
            is_json=True,
        ),
        "own config": Loader(read=OwnModel.read, seeds={"config.json": _own()}, is_json=True),
        "audio config": Loader(
            read=AudioEncoderConfig.from_json,
            seeds={"config.json": (SPECS / "w2v_small.config.json").read_bytes()},
            is_json=True,
        ),
        "tuning": Loader(read=_read_tuning, seeds={"tuning.json": _tuning()}, is_json=True),
        "tokenizer": Loader(
            read=lambda path: load_tokenizer(path.parent)("hello"),
            seeds={"tokenizer.json": _tokenizer()},
            is_json=True,
        ),
        "manifest": Loader(read=read_manifest, seeds={"SHA256SUMS": _manifest()}),
        "profile": Loader(
            read=_read_profile,
            seeds={"report.json": (RECORDED / "profile_tiny_xeon2c_202611.json").read_bytes()},
            is_json=True,
        ),
        "evidence": Loader(read=_read_evidence, seeds=_evidence(), is_json=True),
        "inspection": Loader(
            read=_read_inspection,
            seeds={"inspect.json": _inspection()},
            is_json=True,
        ),
    }


def _own() -> bytes:
    config = json.loads((SPECS / "tiny_a.config.json").read_bytes())
    own = OwnModel(size=(96, 96), prompt_zeros=1, image_zeros=True)
    return json.dumps({**config, **own.entry()}).encode()


def _pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    exif[0x010E] = "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = {}
    for name, mode, options in (
        ("a.png", "RGBA", {"icc_profile": profile}),
        ("b.png", "P", {}),
        ("c.png", "I;16", {}),
        ("a.jpg", "RGB", {"exif": exif, "icc_profile": profile}),
        ("b.jpg", "CMYK", {}),
        ("a.webp", "RGB", {"exif": exif}),
        ("a.bmp", "RGB", {}),
        ("a.gif", "P", {}),
    ):
        source = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
        stream = io.BytesIO()
        source.save(stream, {"jpg": "JPEG"}.get(name[2:], name[2:].upper()), **options)
        found[name] = stream.getvalue()
    return found


def _sounds() -> dict[str, bytes]:
    found = {}
    wave = (0.3 * np.sin(np.arange(4000) / 9)).astype(np.float32)
    for name, kind, codec, rate, layout in (
        ("a.wav", "wav", "pcm_s16le", 16000, "mono"),
        ("b.wav", "wav", "pcm_f32le", 44100, "stereo"),
        ("a.flac", "flac", "flac", 16000, "5.1"),
        ("a.mp3", "mp3", "mp3", 44100, "stereo"),
        ("a.ogg", "ogg", "libopus", 48000, "mono"),
        ("a.mkv", "matroska", "libopus", 48000, "stereo"),
        ("a.mp4", "mp4", "aac", 44100, "stereo"),
        ("a.ts", "mpegts", "aac", 44100, "mono"),
    ):
        stream = io.BytesIO()
        with av.open(stream, "w", format=kind) as container:
            track = container.add_stream(codec, rate=rate, layout=layout)
            channels = track.codec_context.layout.nb_channels
            block = np.tile(wave, (channels, 1))
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            resampler = av.AudioResampler(format=track.codec_context.format, layout=layout)
            for ready in (*resampler.resample(frame), *resampler.resample(None), None):
                container.mux(track.encode(ready))
        found[name] = stream.getvalue()
    return found


def _read_sound(path: Path) -> None:
    with AudioReader(path) as reader:
        for _ in reader:
            pass


def _avatar() -> bytes:
    return Avatar(
        context=torch.randn(2, 4096),
        clip_fea=torch.randn(1, 257, 1280),
        condition=torch.randn(16, 9, 2, 2),
        portrait=torch.zeros(3, 16, 16, dtype=torch.uint8),
        model="abc",
        prompt="A person is talking.",
    ).to_bytes()


def _clips() -> bytes:
    entry = Entry(file="0.safetensors", frames=40, facts={"voice": "en"})
    index = Index(size=(16, 16), truth=("opening",), settings={"seed": 1}, clips=(entry,))
    return json.dumps(asdict(index)).encode()


def _weights() -> dict[str, torch.Tensor]:
    return {
        "blocks.0.weight": torch.randn(8, 4),
        "blocks.0.bias": torch.randn(8).bfloat16(),
        "blocks.1.weight": torch.randn(4, 8).half(),
    }


def _pth() -> bytes:
    stream = io.BytesIO()
    torch.save(_weights(), stream)
    return stream.getvalue()


def _index() -> bytes:
    keys = dict.fromkeys(_weights(), "shard.safetensors")
    return json.dumps({"metadata": {"total_size": 272}, "weight_map": keys}).encode()


def _read_shards(path: Path) -> None:
    shard = path.with_name("shard.safetensors")
    if not shard.exists():
        shard.write_bytes(save(_weights()))
    _read_weights(path)


def _read_weights(path: Path) -> None:
    with open_weights(path) as files:
        for key in files.shapes:
            files.read(key)


def _tuning() -> bytes:
    choices = tuple(
        Choice(
            op="add_norm",
            dtype="float32",
            dims={"L": length, "D": 64},
            p50={"cpu": 1e-3, "reference": 2e-3},
            backend="cpu",
        )
        for length in (8, 1000)
    )
    entry = MachineEntry(
        key=TuningKey.of(CPU), complete=True, date="2026-11-28", commit="", choices=choices
    )
    return json.dumps(Tuning(path="tuning.json", machines=(entry,)).as_json()).encode()


def _read_tuning(path: Path) -> None:
    dims = {"L": 100, "D": 64}
    case = Case(op="add_norm", device=CPU, dtype=torch.float32, dims=dims)
    Tuning.load(path).advise(case)


def _tokenizer() -> bytes:
    tokenizer = Tokenizer(WordLevel({"hello": 0, "<unk>": 1}, unk_token="<unk>"))
    return tokenizer.to_str().encode()


def _manifest() -> bytes:
    lines = (f"{number:064x}  checkpoint/part-{number}.safetensors" for number in range(4))
    return "\n".join(lines).encode()


def _evidence() -> dict[str, bytes]:
    names = ("profile_tiny_xeon2c_202611.json", "ops_fp32_epyc2c_202611.json")
    return {name: (RECORDED / name).read_bytes() for name in names}


def _read_evidence(path: Path) -> None:
    for entry in read_recorded([path]):
        if entry.kind == "profile":
            Observed.of(entry)


def _inspection() -> bytes:
    report = json.loads((RECORDED / "inspect_triton3.9.json").read_bytes())
    report["kernels"] = report["kernels"][:2]
    return json.dumps(report).encode()


def _read_inspection(path: Path) -> None:
    fields = json.loads(_inspection())
    now = Report(
        dtype=fields["dtype"], date="", commit="", versions={"triton": "3.9.0"}, kernels=()
    )
    before = baseline.load(path, now)
    baseline.regressions(before, before)
    as_json(before)


def _read_profile(path: Path) -> None:
    read_report(path.parent)
