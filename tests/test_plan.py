"""The plan of a study's trainings: operations by formula, shapes by the models themselves, hours and memory in proportion."""

import pytest
import torch

from rsvlm.study import plan
from rsvlm.study.model_sizes import Decoder, Tower
from rsvlm.study.studies import main, study_params

torch.set_num_threads(1)


def test_operations_of_a_frozen_decoder_by_formula():
    H, middle, layers, keys, V, T, labels = 256, 512, 2, 128, 300, 20, 5
    cost = plan.decoder_cost(Decoder(0, H, middle, layers, keys, V), T, labels)
    linear = layers * 2 * T * (2 * H * H + 2 * H * keys + 3 * H * middle) + 2 * labels * H * V
    attention = layers * 2 * 2 * T * T * H
    assert cost.forward == linear + attention
    assert cost.backward == linear + 2 * attention, "no gradients of frozen weights, but of both sides of attention"


def test_operations_of_a_training_tower_by_formula():
    W, layers, T = 128, 3, 17
    cost = plan.encoder_cost(Tower(W, layers, T))
    assert cost.forward == layers * (2 * T * 12 * W * W + 2 * 2 * T * T * W)
    assert cost.backward == 2 * cost.forward


def test_published_shapes_have_the_published_numbers_of_weights():
    for one in plan.DECODERS.values():
        layer = 2 * one.width**2 + 2 * one.width * one.key_width + 3 * one.width * one.middle + 2 * one.width
        assert one.layers * layer + 2 * one.vocabulary * one.width + one.width == one.parameters
    from transformers import CLIPConfig, CLIPModel  # here: rsvlm makes torchvision importable for it

    (one,) = plan.ENCODERS.values()
    towers = {}
    for name, tower, more in (
        ("text", one.text, {}),
        ("vision", one.vision, {"image_size": one.image_size, "patch_size": 14}),
    ):
        shape = {"hidden_size": tower.width, "num_hidden_layers": tower.layers, "intermediate_size": 4 * tower.width}
        towers[f"{name}_config"] = shape | {"num_attention_heads": tower.width // 64} | more
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**towers, projection_dim=one.text.width))
    assert sum(parameter.numel() for parameter in model.parameters()) == one.parameters
    assert model.vision_model.embeddings.num_positions == one.vision.tokens


def test_the_plan_of_cap4(capsys):
    assert main(["plan", "cap4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "cap4: computed, not measured"
    rows = [line.split(")")[1].split() for line in lines if line.startswith(("  1 x", "  8 x")) and "TFLOP" not in line]
    assert len(rows) == 6
    for small, large, eight in (rows[:3], rows[3:]):
        assert float(small[4]) <= 0.9 * 24 and float(large[4]) <= 0.9 * 80
        assert small[0] != "all" and (large[0] == "all" or int(large[0]) > int(small[0]))
        assert float(eight[5]) <= float(large[5]) / 8 * 1.1 + 0.01
    # 64 rows a step, two passes and one more of 162 tokens through 6.5 thousand million weights
    by_hand = 20_000 * 64 * 3 * 2 * 162 * 6.6e9 / (312e12 * 0.35) / 3600
    assert float(rows[4][5]) == pytest.approx(by_hand, rel=0.05)


def test_images_of_sources_by_their_papers():
    assert plan.training_images(study_params("cap4"), "cap4") == 25_200 + round(8_734 * 0.94) + 497 + 1_680
    assert plan.training_images(study_params("ucm"), "ucm") == 1_680


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (
            "blue_marble",
            "params/blue_marble.yaml: aggregate_data.sources: how many images 'blue_marble' has is not known",
        ),
        (
            "ucm",
            "params/ucm.yaml: adapt_encoder.encoder: the shape of 'packaged:efficientnet-lite2-minilm' is not known",
        ),
        ("cap5", "no study 'cap5'"),
    ],
)
def test_what_has_no_plan_is_said_in_a_line(study, said, capsys):
    assert main(["plan", study]) == 1
    assert said in capsys.readouterr().err
