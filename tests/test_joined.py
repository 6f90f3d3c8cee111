"""Several encoders as one: cosines are means, each member learns by itself, a kill changes nothing."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_contrastive import QUICK, adapt, replace, table  # noqa: F401
from test_encoders import outputs

from rsvlm.models.joined import JoinedEncoder, join_siblings
from rsvlm.models.packaged import PACKAGED
from rsvlm.models.zoo import RANDOM_CLIP, is_encoder, load_encoder
from rsvlm.settings import AdaptSettings
from rsvlm.study.model_sizes import encoder_size
from rsvlm.training import contrastive

torch.set_num_threads(1)
TWO = replace(QUICK, members=2)


@pytest.fixture
def joined(tiny_models) -> JoinedEncoder:
    """Two different members: the second one's weights are moved a little."""
    made = join_siblings(load_encoder(str(tiny_models.clip)), 2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.members[1].parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return made


def test_a_cosine_is_the_mean_of_the_members(joined):
    pooled, cells, images, texts = outputs(joined)
    apart = [outputs(member) for member in joined.members]
    assert pooled.shape[-1] == joined.feature_dim and images.shape[-1] == texts.shape[-1] == joined.embedding_dim
    assert torch.equal(pooled, torch.cat([own[0] for own in apart], -1))
    assert torch.equal(cells, torch.cat([own[1] for own in apart], -1))
    cosines = [F.normalize(i, dim=-1) @ F.normalize(t, dim=-1).T for _, _, i, t in apart]
    assert (cosines[0] - cosines[1]).abs().max() > 0.01
    found = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    assert torch.allclose(found, (cosines[0] + cosines[1]) / 2, atol=1e-6)


def test_saved_and_loaded_it_is_the_same(joined, tmp_path):
    joined.save(tmp_path / "saved")
    loaded = load_encoder(tmp_path / "saved")
    assert is_encoder(tmp_path / "saved") and loaded.fingerprint() == joined.fingerprint()
    assert all(torch.equal(one, other) for one, other in zip(outputs(loaded), outputs(joined)))
    counted = sum(parameter.numel() for parameter in joined.parameters())
    assert encoder_size(str(tmp_path / "saved"), None).parameters == pytest.approx(counted, rel=0.01)
    groups = joined.parameter_groups()
    assert sorted(id(p) for own in groups.values() for p in own) == sorted(map(id, joined.parameters()))
    assert len(joined.image_blocks()) == len(joined.members[0].image_blocks())


@pytest.mark.parametrize("members", [1, 9, "2", "../../elsewhere", None])
def test_a_configuration_that_is_wrong_is_refused(joined, tmp_path, members):
    joined.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "rsvlm-joined", "members": members}))
    with pytest.raises(ValueError, match="config.json: members is .* from 2 to 8"):
        load_encoder(tmp_path / "saved")


def test_a_missing_member_is_named(joined, tmp_path):
    joined.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "rsvlm-joined", "members": 3}))
    with pytest.raises(FileNotFoundError, match="saved/2"):
        load_encoder(tmp_path / "saved")


def test_members_that_prepare_pictures_differently_are_refused(tiny_models):
    with pytest.raises(ValueError, match="prepare pictures differently"):
        JoinedEncoder("two", [load_encoder(str(tiny_models.clip)), load_encoder(PACKAGED, image_size=64)])


def test_siblings_of_the_packaged_encoder_begin_elsewhere():
    first, second = join_siblings(load_encoder(PACKAGED, image_size=64), 2).members
    assert torch.equal(first.image_tower.stem.weight, second.image_tower.stem.weight)
    assert not torch.equal(first.image_projection.weight, second.image_projection.weight)
    widths = [member.image_projection.weight.std().item() for member in (first, second)]
    assert widths[0] == pytest.approx(widths[1], rel=0.02)


def test_one_member_is_the_encoder_itself(tiny_models):
    encoder = load_encoder(RANDOM_CLIP)
    assert join_siblings(encoder, 1) is encoder and encoder.members == [encoder]


def test_it_lies_wholly_where_its_members_do():
    """Joined behind ``to``, as a study on a GPU does; "meta" stands for the GPU."""
    made = join_siblings(load_encoder(RANDOM_CLIP).to("meta"), 2)
    assert {tensor.device.type for tensor in (*made.parameters(), *made.buffers())} == {"meta"}
    assert made.normalize(torch.zeros(1, 3, made.image_size, made.image_size, dtype=torch.uint8)).is_meta


def test_both_members_learn_each_by_itself(tiny_models, table, tmp_path):  # noqa: F811
    alone, both = load_encoder(str(tiny_models.clip)), join_siblings(load_encoder(str(tiny_models.clip)), 2)
    before = alone.fingerprint()
    settings = replace(TWO, epochs=12, batch_size=16)
    result = adapt(both, table, settings, save_to=tmp_path / "saved")
    prints = {member.fingerprint() for member in both.members}
    assert len(prints) == 2 and before not in prints
    assert result.after["mean_recall"] > result.before["mean_recall"]
    assert load_encoder(tmp_path / "saved").fingerprint() == both.fingerprint()


def test_killed_and_run_again_is_bit_equal(tiny_models, table, monkeypatch):  # noqa: F811
    whole = join_siblings(load_encoder(str(tiny_models.clip)), 2)
    expected = adapt(whole, table, TWO)
    original, calls = contrastive.contrastive_loss, []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == 8:  # in the second member of the fourth step
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(contrastive, "contrastive_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        adapt(join_siblings(load_encoder(str(tiny_models.clip)), 2), table, TWO)
    monkeypatch.setattr(contrastive, "contrastive_loss", original)
    again = join_siblings(load_encoder(str(tiny_models.clip)), 2)
    assert adapt(again, table, TWO) == expected and again.fingerprint() == whole.fingerprint()


def test_chunks_change_nothing(tiny_models, table):  # noqa: F811
    whole, parts = (join_siblings(load_encoder(str(tiny_models.clip)), 2) for _ in range(2))
    one, other = adapt(whole, table, TWO), adapt(parts, table, replace(TWO, chunk=3))
    assert [row["loss"] for row in one.curve] == pytest.approx([row["loss"] for row in other.curve], rel=1e-4)


def test_members_without_training_are_refused():
    with pytest.raises(ValueError, match="'members' 2 need 'epochs' of 1 or more"):
        AdaptSettings(members=2, epochs=0)
