"""The transformer's trainings: what they build on, and what they leave for the product."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import is_file
from livetalk_kernels.ops import Ops
from livetalk_kernels.outputs import new_file

from ...config import DiTConfig
from ...encoders.audio import AudioEncoder
from ...encoders.conditions import ConditionEncoders
from ...loading import resolve_dtype
from ...own import OwnModel
from ...sampler import timesteps
from ...vae import VAE
from ...weights.checkpoint import (
    AUDIO_FOLDER,
    DIT_CONFIG,
    CheckpointFolder,
    read_vae_config,
)
from ...weights.fill import load_module, open_weights
from ..audio.export import AUDIO_CONFIG, AUDIO_PICKLE, AUDIO_WEIGHTS
from ..cost import SAMPLER_STEPS
from ..data.clips import Clips
from ..demo import DEMO, training_dtype
from ..draws import Draws
from ..loop.place import Place
from ..loop.saving import State
from ..loop.training import (
    AUDIO_SOURCE,
    START_SOURCE,
    TEACHER_SOURCE,
    VAE_SOURCE,
    About,
    Training,
    averaged,
    start_state,
    truth_above,
)
from ..product.export import DIT_FILE, export_network
from ..settings import Run
from .distill import Setup
from .feature_data import FeatureData, Frozen
from .feature_files import features_key
from .flow import SHIFT, with_motion
from .network import Conditions, Network, load_network, random_network
from .rollout import roll_out, take_step
from .tasks import CRITIC, STUDENT, TEACHER, DistillTask, TeacherTask, through_frames

_PROMPT_ZEROS = 1  # rows that replace a small model's prompt: it learns nothing from text
_PORTRAITS = 8  # clips whose portraits show what the model is used to


def teacher_training(run: Run, clips: Clips, about: About, place: Place | None = None) -> Training:
    """Set up the training of a transformer by flow matching: a new or an existing one.

    Args:
        run: The settings.
        clips: The data.
        about: What it builds on.
        place: The device and the ranks; by default one rank on the CPU.

    Raises:
        UserError: What it builds on is unusable.
    """
    place = place or Place()
    vae, encoder = _load_vae(about, place.ops, place), _load_encoder(about, place)
    start = about.sources.get(START_SOURCE)
    folder = None if start is None else CheckpointFolder(start)
    if folder is None:
        config = dataclasses.replace(DEMO.dit, audio_layers=encoder.layers, audio_dim=encoder.width)
    else:
        config = folder.dit_config(encoder.layers, encoder.width)
    own = _own(folder, clips)
    encoders = _encoders(folder, config, own, place)
    frozen = _frozen(about, config, vae, encoder, encoders, place)
    data = FeatureData(clips, run, frozen, config)
    if folder is None:
        network = random_network(run.seed, config, place)
    else:
        network = load_network(folder, config, place)
    network.requires_grad_()
    state = start_state(run, {TEACHER: network}, {TEACHER: run.learning_rate})
    schedule = timesteps(SAMPLER_STEPS, SHIFT)
    task = TeacherTask(teaching=run.teaching, schedule=schedule, draws=Draws(seed=run.seed))
    return _training(run, task, state, TEACHER, data, vae, own, _extras(about, encoders), place)


def distill_training(run: Run, clips: Clips, about: About, place: Place | None = None) -> Training:
    """Set up a student and a fake score, both initialised from the teacher.

    Arguments as in `teacher_training`.

    Raises:
        UserError: What it builds on is unusable.
    """
    place = place or Place()
    vae, encoder = _load_vae(about, place.ops, place), _load_encoder(about, place)
    folder = CheckpointFolder(_source(about, TEACHER_SOURCE))
    config = folder.dit_config(encoder.layers, encoder.width)
    own = _own(folder, clips)
    encoders = _encoders(folder, config, own, place)
    frozen = _frozen(about, config, vae, encoder, encoders, place)
    data = FeatureData(clips, run, frozen, config, chunks=run.distillation.chunks)
    # On a GPU in the products' dtype: it only looks on, and is read in that.
    looks_on = torch.float32 if place.device.type == "cpu" else place.products
    real = load_network(folder, config, place, looks_on)
    networks = {
        name: load_network(folder, config, place).requires_grad_() for name in (CRITIC, STUDENT)
    }
    state = start_state(run, networks, {CRITIC: run.critic_rate, STUDENT: run.learning_rate})
    setup = Setup(
        real=real,
        schedule=timesteps(SAMPLER_STEPS, SHIFT),
        method=run.distillation,
        draws=Draws(seed=run.seed),
    )
    # A second one without gradients: backends may pack its weights, which `encode_whole` reads.
    ops = bind_ops(KernelConfig(), device=place.device, dtype=torch.float32)
    fast = _load_vae(about, ops, place)
    task = DistillTask(setup=setup, hand_over=through_frames(fast))
    return _training(run, task, state, STUDENT, data, vae, own, _extras(about, encoders), place)


def _training(
    run: Run,
    task: TeacherTask | DistillTask,
    state: State,
    made: str,
    data: FeatureData,
    vae: VAE,
    own: OwnModel,
    extras: Mapping[str, Path],
    place: Place,
) -> Training:
    """Set up the training of a network whose chunks are sampled along the way."""
    draws = Draws(seed=run.seed)

    @torch.no_grad()
    def sample() -> Tensor:
        seen = {name: place.take(value) for name, value in data.first_chunk().items()}
        given = Conditions(
            **{name: seen[name] for name in ("portrait", "text", "image", "windows")}
        )
        with averaged(state, made) as network:
            at = roll_out(
                network,
                [given],
                given.portrait[:, :, :1],
                schedule=timesteps(SAMPLER_STEPS, SHIFT),
                exit_step=SAMPLER_STEPS - 1,
                hand_over=lambda latents: latents,
                draw_noise=lambda chunk, draw, first: place.take(
                    draws.noise(f"sample {draw}", given.portrait.shape[1:], step=0, samples=[0])
                ),
            )
            latents = with_motion(take_step(network, at), at.motion)
        return truth_above(vae.decode(seen["latents"])[0], vae.decode(latents)[0])

    def finish(folder: Path) -> Sequence[Path]:
        network = state.networks[made]
        assert isinstance(network, Network)
        average = state.averages[made].weights if made in state.averages else None
        said = dataclasses.replace(own, portrait_db=data.portrait_db(_PORTRAITS))
        # First: config.json indicates completeness.
        if place.leads:
            _copy(extras, folder)
        export_network(network, folder, own=said, weights=average, leads=place.leads)
        return [folder / DIT_FILE, folder / DIT_CONFIG, *(folder / name for name in extras)]

    return Training(task=task, state=state, data=data, sample=sample, finish=finish)


def _own(folder: CheckpointFolder | None, clips: Clips) -> OwnModel:
    """Declare how the model will be used: like the one it begins as; a new one without encoders."""
    size = clips.index.size
    if folder is None:
        return OwnModel(size=size, prompt_zeros=_PROMPT_ZEROS, image_zeros=True)
    return dataclasses.replace(folder.own or OwnModel(size=size), size=size, portrait_db=None)


def _encoders(
    folder: CheckpointFolder | None, config: DiTConfig, own: OwnModel, place: Place
) -> ConditionEncoders:
    """Find the encoders of prompts and portraits.

    Raises:
        UserError: The transformer uses some that its folder lacks; zeros would replace what it
            knows.
    """
    dtype = resolve_dtype("auto", place.device)
    encoders = ConditionEncoders(config, folder, own, device=place.device, dtype=dtype)
    if encoders.missing:
        raise UserError(
            f"{encoders.missing[0]}: missing; this transformer is trained on prompts and portraits "
            "as encoded by the published encoders: download them into its folder"
        )
    return encoders


def _extras(about: About, encoders: ConditionEncoders) -> Mapping[str, Path]:
    """List what 'livetalk generate' also needs: name in the run's folder -> file to copy."""
    return _coders(about) | encoders.files


def _coders(about: About) -> dict[str, Path]:
    """List the files of VAE and audio encoder: name in the run's folder -> file."""
    vae = CheckpointFolder(_source(about, VAE_SOURCE)).vae
    audio = Path(_source(about, AUDIO_SOURCE))
    weights = next((n for n in (AUDIO_WEIGHTS, AUDIO_PICKLE) if is_file(audio / n)), AUDIO_WEIGHTS)
    names = (AUDIO_CONFIG, weights)
    return {vae.name: vae} | {f"{AUDIO_FOLDER}/{name}": audio / name for name in names}


def _copy(extras: Mapping[str, Path], folder: Path) -> None:
    for name, source in extras.items():
        with new_file(folder / name) as file, source.open("rb") as there:
            shutil.copyfileobj(there, file)


def _frozen(
    about: About,
    config: DiTConfig,
    vae: VAE,
    encoder: AudioEncoder,
    encoders: ConditionEncoders,
    place: Place,
) -> Frozen:
    """Bundle the networks that compute features for a transformer."""
    files = _coders(about) | encoders.image_files
    image = config.image_len, config.image_dim
    key = features_key(list(files.values()), training_dtype(place.device), image)
    return Frozen(vae=vae, encoder=encoder, encoders=encoders, key=key)


def _load_encoder(about: About, place: Place) -> AudioEncoder:
    return AudioEncoder.from_folder(_source(about, AUDIO_SOURCE), device=place.device)


def _load_vae(about: About, ops: Ops, place: Place) -> VAE:
    with open_weights(CheckpointFolder(_source(about, VAE_SOURCE)).vae) as files:
        with torch.device("meta"):
            vae = VAE(read_vae_config(files), ops)
        load_module(vae, files, dtype=torch.float32, device=place.device)
    vae.prepare()
    return vae


def _source(about: About, name: str) -> str:
    if name not in about.sources:
        option = name.replace("_", "-")
        kind = name.removesuffix("_encoder")
        raise UserError(
            f"--{option}: missing; train it with 'livetalk train {kind}' and give the run's folder"
        )
    return about.sources[name]
