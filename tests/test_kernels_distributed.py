"""The contrastive loss and sharded search across 1, 2 and 3 processes (gloo), against one process in float64."""

import distributed_cases as cases
import pytest
import torch
from gloo_processes import start

from rsvlm.kernels import contrastive_loss

WORLD = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Folder with what each process of each group size found."""
    folder = tmp_path_factory.mktemp("processes")
    start(cases.__file__, WORLD, folder)
    return folder


def single(dtype):
    """(features' gradients, model with gradients, loss) of one process."""
    images, texts, positives, weights = cases.inputs(dtype)
    model = cases.Towers(weights)
    features = model(images, texts)
    for part in features[:2]:
        part.retain_grad()
    loss = contrastive_loss(*features, positives)
    loss.backward()
    return features, model, loss


@pytest.mark.parametrize("size", range(1, WORLD + 1))
def test_the_loss_of_all_rows_and_the_gradient_that_ddp_wants(found, size):
    features, model, loss = single(torch.float64)
    image_cuts, text_cuts = cases.CUTS[size]
    for rank in range(size):
        told = torch.load(found / f"{size}_{rank}.pt")
        assert told["loss"].item() == pytest.approx(loss.item(), rel=5e-7)
        for name, cuts, part in (("images", image_cuts, features[0]), ("texts", text_cuts, features[1])):
            right = size * part.grad[cuts[rank] : cuts[rank + 1]]
            assert (told[name] - right).norm() <= 2e-6 * part.grad.norm() * size
        for name, parameter in model.named_parameters():  # DDP's mean has made them those of the whole loss
            assert (told[name] - parameter.grad).norm() <= 2e-6 * parameter.grad.norm()


@pytest.mark.parametrize("size", [1, 2])
def test_without_positives_pairs_lie_on_the_diagonal_of_each_process(found, size):
    images, texts, _, weights = cases.inputs(torch.float64)
    features = cases.Towers(weights)(images, texts)
    image_cuts, text_cuts = cases.CUTS[size]
    own = [min(image_cuts[r + 1] - image_cuts[r], text_cuts[r + 1] - text_cuts[r]) for r in range(size)]
    rows = [
        torch.cat([part[cuts[r] : cuts[r] + n] for r, n in enumerate(own)])
        for part, cuts in zip(features, (image_cuts, text_cuts))
    ]
    right = contrastive_loss(*rows, torch.tensor(9.0))
    for rank in range(size):
        assert torch.load(found / f"{size}_{rank}.pt")["diagonal"].item() == pytest.approx(right.item(), rel=1e-6)


def test_a_process_with_wrong_arguments_leaves_none_waiting(found):
    said = [(found / f"said_{rank}.txt").read_text() for rank in range(WORLD)]
    assert "width 7, text_features have width 6" in said[1]
    assert all("process 1 of 3 was given arguments that do not fit" in said[rank] for rank in (0, 2))
    assert "expected bool (3, 9)" in said[2]
    assert all("process 2 of 3" in said[rank] for rank in (0, 1))
