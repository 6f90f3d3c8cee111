"""A batch in chunks: the gradients of the whole batch, with the activations of one chunk in memory at a time (GradCache)."""

import pytest
import torch
import training_cases as cases

from rsvlm.kernels import contrastive_loss
from rsvlm.models.hub_encoders import HubEncoder
from rsvlm.training.loop import in_chunks

torch.set_num_threads(1)


class Tower(torch.nn.Module):
    """Two layers with dropout between; remembers how many rows came at a time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).double()
        self.seen = []

    def forward(self, rows):
        self.seen.append(len(rows))
        return torch.nn.functional.normalize(self.layers(rows), dim=1)


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_gradients_are_those_of_the_whole_batch(size):
    rows = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for chunk in (0, size):
        tower = Tower()
        features = in_chunks(tower, rows, chunk)
        loss = contrastive_loss(features, features.roll(1, 0), torch.tensor(9.0, dtype=torch.float64))
        forward = list(tower.seen)
        loss.backward()
        found.append((loss.item(), [parameter.grad for parameter in tower.parameters()]))
        assert max(tower.seen) <= (chunk or 10) and sum(forward) == 10
        assert sum(tower.seen) == (20 if chunk else 10), "computed anew in the backward pass"
    (loss, whole), (again, chunked) = found
    assert again == pytest.approx(loss, rel=1e-12)
    for one, other in zip(whole, chunked):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_without_gradients_all_rows_go_at_once():
    tower = Tower()
    with torch.no_grad():
        assert len(in_chunks(tower, torch.zeros(10, 6, dtype=torch.float64), 3)) == 10
    assert tower.seen == [10]


def test_dropout_is_repeated():
    """Otherwise the gradient belongs to another loss than the one that was computed."""
    weight = torch.ones(64, requires_grad=True)
    torch.manual_seed(0)
    kept = in_chunks(lambda rows: torch.nn.functional.dropout(rows * weight, 0.5), torch.ones(6, 64), 2)
    kept.sum().backward()
    assert torch.equal(weight.grad, kept.detach().sum(0))


def test_an_adaptation_in_chunks_ends_where_one_of_whole_batches_does(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setenv("RSVLM_CACHE", str(tmp_path / "cache"))
    table, most, original = cases.write_pictures(tmp_path), [], HubEncoder.text_features

    def counted(self, texts):
        if torch.is_grad_enabled():
            most.append(len(texts))
        return original(self, texts)

    monkeypatch.setattr(HubEncoder, "text_features", counted)
    whole, expected, _ = cases.adapt(tiny_models.clip, table, cases.SETTINGS[1])
    assert max(most) == 16
    most.clear()
    settings = cases.AdaptSettings(**dict(cases.SETTINGS[1]) | {"chunk": 3})
    encoder, result, _ = cases.adapt(tiny_models.clip, table, settings)
    assert max(most) == 3
    cases.same_within_rounding(encoder.state_dict(), result.curve, whole, expected)
