"""The VAE as it is trained: the numbers of a stream, and a start that is a code already."""

import pytest
import torch
from test_train_vae import draw
from torch import Tensor
from train_samples import small_vae

from livetalk_model.train.demo import new_vae
from livetalk_model.train.faces.identity import Identity
from livetalk_model.train.faces.painter import Painter, Pose
from livetalk_model.train.vae.start import components, start_from_pictures
from livetalk_model.train.vae.whole import NO_BLOCKS, encode_whole, round_trip
from livetalk_model.vae import VAE


def gradients(vae: VAE, made: Tensor) -> dict[str, Tensor]:
    vae.zero_grad(set_to_none=True)
    (made * draw(*made.shape, seed=2)).mean().backward()
    return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def far(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest relative difference of a parameter's gradient."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - g).norm() / (g.norm() + 1e-7)) for n, g in wanted.items())


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_pictures_and_gradients_are_those_of_a_stream(frames):
    vae = small_vae().requires_grad_()
    video = draw(2, 3, frames, 16, 24).clamp(-1, 1)
    streamed = vae.decode(vae.encode(video), clamp=False)
    made = round_trip(vae, video, dtype=torch.float32)
    assert (made - streamed).norm() < 1e-5 * streamed.norm()
    assert far(gradients(vae, made), gradients(vae, streamed)) < 1e-3


def test_latents_are_those_of_a_stream():
    vae, video = small_vae(), draw(1, 3, 9, 32, 32).clamp(-1, 1)
    wanted = vae.encode(video)
    spread = (wanted - wanted.mean(dim=(0, 2, 3, 4), keepdim=True)).norm()
    assert (encode_whole(vae, video) - wanted).norm() < 0.05 * spread


def test_gradients_in_bf16_are_of_memory_that_was_written():
    """With fewer frames than taps oneDNN's are not, unless the zeros before them are there."""
    vae = small_vae().requires_grad_()
    video = draw(2, 3, 5, 32, 32).clamp(-1, 1)
    for _ in range(3):
        poison = [torch.full((n,), torch.nan) for n in (500, 5000, 50_000, 500_000)]
        del poison
        found = gradients(vae, round_trip(vae, video, dtype=torch.bfloat16))
        assert all(gradient.isfinite().all() for gradient in found.values())
    name = "decoder.head.2.weight"
    exact = gradients(vae, round_trip(vae, video, dtype=torch.float32))[name]
    assert (found[name] - exact).norm() < 0.2 * exact.norm()


def test_blocks_that_are_left_out_are_as_if_they_added_nothing():
    vae = small_vae()
    video = draw(1, 3, 5, 32, 32).clamp(-1, 1)
    whole = round_trip(vae, video)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if ".residual.6." in name or ".proj." in name:
                parameter.zero_()
    none = round_trip(vae, video, blocks=NO_BLOCKS)
    assert torch.equal(none, round_trip(vae, video)) and not torch.equal(none, whole)


def test_an_encoder_that_rests_gets_no_gradient():
    vae = small_vae().requires_grad_()
    found = gradients(vae, round_trip(vae, draw(1, 3, 5, 16, 16), coder_learns=False))
    assert found and all(name.startswith(("decoder", "conv2")) for name in found)


def test_the_start_is_a_code_by_principal_components():
    """What 16 components of 8 x 8 pixels say of pictures, the latents say of an unseen face."""
    faces = [Painter(Identity.of(n), (48, 48)).draw(Pose(opening=n % 3 / 2)) for n in range(60)]
    pictures = torch.stack([torch.from_numpy(f.copy()) for f in faces]).permute(0, 3, 1, 2) / 127.5
    seen, unseen = (pictures - 1).split((50, 10))
    vae = new_vae(0)
    start_from_pictures(vae, seen)
    latents = vae.encode(unseen[:, :, None]).movedim(1, -1).flatten(0, 3)
    wanted = squares(unseen)
    known = torch.cat((latents, torch.ones(len(latents), 1)), dim=1)
    predicted = known @ torch.linalg.lstsq(known, wanted).solution
    mean, axes, _ = components(squares(seen), 16)
    best = (wanted - mean) @ axes @ axes.T + mean
    error, least = ((a - wanted).square().mean() for a in (predicted, best))
    assert error < 1.3 * least and least < 0.1 * wanted.var()
    one = unseen[:1, :, None]
    assert torch.equal(round_trip(vae, one, blocks=NO_BLOCKS), round_trip(vae, one))


def squares(images: Tensor) -> Tensor:
    """[N, 3, H, W] -> the 8 x 8 pixels of each latent, [N H/8 W/8, 192]."""
    return images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
