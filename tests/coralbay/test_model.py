"""Student and teacher together: what gets gradients, in which order rows come, what is decayed."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from coralbay import recipes
from coralbay.head import DinoHead
from coralbay.model import (
    Branch,
    DinoModel,
    clip_per_tensor_,
    freeze_last_layer_,
    parameter_groups,
)
from coralbay.recipes import Recipe
from coralbay.views import ViewRecipe, ViewSpec

VIEWS = ViewRecipe(
    global_=ViewSpec(size=64, extent=(48, 64), count=2),
    local=ViewSpec(size=33, extent=(24, 40), count=2),
    box_side=65,
)


def little(**changes: object) -> Recipe:
    """Return the smallest model that still has every kind of module, shifted windows among them."""
    recipe = Recipe(
        name="little",
        views=VIEWS,
        feature_size=4,
        num_heads=(1, 1, 2, 2),
        window=3,
        drop_path_rate=0.0,
        head_hidden=16,
        head_bottleneck=8,
        prototypes=32,
    )
    return dataclasses.replace(recipe, **changes)


def views(batch: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.rand(2 * batch, 1, 64, 64, 64, generator=generator),
        torch.rand(2 * batch, 1, 33, 33, 33, generator=generator),
    ]


@pytest.fixture(scope="module")
def stepped() -> DinoModel:
    """Return a model after one backward pass."""
    torch.manual_seed(0)
    model = DinoModel(little())
    model.loss(model(views()), teacher_temp=0.04).backward()
    return model


def test_every_parameter_of_the_24f_encoder_gets_a_gradient(stepped: DinoModel) -> None:
    names = dict(stepped.student.backbone.named_parameters())
    assert len(names) == 145 - 8  # all keys but the eight index buffers
    for name, parameter in names.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in stepped.student.head.named_parameters():
        assert parameter.grad is not None, name


def test_the_raw_stages_leave_the_convolutional_blocks_without_gradient() -> None:
    model = DinoModel(little(vector="31F"))
    model.loss(model(views()), teacher_temp=0.04).backward()
    without = {
        name.split(".")[0]
        for name, p in model.student.backbone.named_parameters()
        if p.grad is None
    }
    assert without == {"encoder1", "encoder2", "encoder3", "encoder4", "encoder10"}


def test_teacher_starts_as_the_student_and_has_no_gradient(stepped: DinoModel) -> None:
    student, teacher = stepped.student.state_dict(), stepped.teacher.state_dict()
    assert student.keys() == teacher.keys()
    assert all(torch.equal(student[key], teacher[key]) for key in student)
    assert all(p.grad is None and not p.requires_grad for p in stepped.teacher.parameters())


def test_a_blocks_gradient_survives_when_its_path_is_dropped() -> None:
    torch.manual_seed(0)
    model = DinoModel(little(drop_path_rate=0.9))
    model.train()
    model.loss(model(views()), teacher_temp=0.04).backward()
    for name, parameter in model.student.backbone.named_parameters():
        assert parameter.grad is not None, name  # zeros at worst: DDP sees every parameter used
        assert torch.isfinite(parameter.grad).all(), name


def test_only_the_student_drops_paths() -> None:
    torch.manual_seed(0)
    model = DinoModel(little(drop_path_rate=0.9)).train()
    globals_ = views()[:1]
    with torch.no_grad():
        assert torch.equal(model.teacher(globals_)[0], model.teacher(globals_)[0])
        assert not torch.equal(model.student(globals_)[0], model.student(globals_)[0])


def test_one_backbone_forward_a_shape_and_one_head_forward() -> None:
    branch = Branch(little(), drop_path_rate=0.0).eval()
    batches: list[tuple[int, ...]] = []
    heads: list[int] = []
    branch.backbone.register_forward_hook(lambda _m, args, _o: batches.append(args[0].shape))
    branch.head.register_forward_hook(lambda _m, args, _o: heads.append(len(args[0])))
    big, small = views()
    # Same last side, different shapes: must not be mixed up.
    flat = torch.rand(1, 1, 40, 40, 33)
    given = [big[:1], small, big[1:], flat]
    with torch.no_grad():
        logits, vectors = branch(given)
        alone = torch.cat([branch.vectors([view]) for view in given])
    assert [shape[0] for shape in batches[:3]] == [2, 2, 1]
    assert heads == [5]
    assert logits.shape == (5, 32)
    torch.testing.assert_close(vectors, alone, atol=1e-5, rtol=1e-4)


def test_rows_are_view_major() -> None:
    model = DinoModel(little()).eval()
    given = views(batch=2)
    with torch.no_grad():
        output = model(given)
        last_local_of_sample_0 = model.student([given[1][2:3]])[0]
        second_global_of_sample_1 = model.teacher([given[0][3:4]])[0]
    assert output.student_logits.shape == (4, 2, 32)
    assert output.teacher_logits.shape == (2, 2, 32)
    assert output.teacher_vectors.shape == (4, 24 * 4)
    torch.testing.assert_close(output.student_logits[3, 0], last_local_of_sample_0[0])
    torch.testing.assert_close(output.teacher_logits[1, 1], second_global_of_sample_1[0])


def test_centre_follows_the_teacher_and_is_in_the_state_dict() -> None:
    model = DinoModel(little()).eval()
    with torch.no_grad():
        output = model(views())
    model.update_centre(output)
    expected = 0.1 * output.teacher_logits.reshape(-1, 32).mean(0)
    torch.testing.assert_close(model.state_dict()["centre"], expected)


def test_parameter_groups_by_name() -> None:
    student = DinoModel(little()).student
    decayed, undecayed = parameter_groups(student)
    assert undecayed["weight_decay"] == 0
    names = {id(p): name for name, p in student.named_parameters()}
    without = {names[id(p)] for p in undecayed["params"]}
    within = {names[id(p)] for p in decayed["params"]}
    assert without | within == set(names.values())
    assert not without & within
    assert sum("relative_position_bias_table" in name for name in without) == 8
    assert {name for name in names.values() if name.endswith("bias")} <= without
    assert all("norm" in n or "bias" in n for n in without)
    assert "head.last_layer.weight" in within
    assert "backbone.encoder10.layer.conv1.conv.weight" in within
    assert "backbone.swinViT.layers1.0.downsample.norm.weight" in without


def test_clipping_is_per_tensor() -> None:
    small, big = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    untouched = nn.Parameter(torch.zeros(2))
    small.grad, big.grad = torch.tensor([0.6, 0.8]), torch.tensor([30.0, 40.0])
    clip_per_tensor_([small, big, untouched], 3.0)
    torch.testing.assert_close(small.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(big.grad, torch.tensor([1.8, 2.4]))
    assert untouched.grad is None


def test_a_frozen_last_layer_stays_while_the_rest_moves() -> None:
    torch.manual_seed(0)
    head = DinoHead(12, 16, 8, 32)
    head(torch.randn(4, 12)).square().sum().backward()
    freeze_last_layer_(head)
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    torch.optim.AdamW(parameter_groups(head), lr=1e-3, weight_decay=0.4).step()
    moved = {n for n, p in head.named_parameters() if not torch.equal(p, before[n])}
    assert set(before) - moved == {"last_layer.weight"}


def test_recipes_by_name_and_the_sizes_they_promise() -> None:
    assert {name: make().feature_size for name, make in recipes.RECIPES.items()} == {
        "tiny": 8,
        "small": 48,
        "base": 96,
        "large": 192,
    }
    for name, make in recipes.RECIPES.items():
        recipe = make()
        assert recipe.name == name
        assert (recipe.views.global_.count, recipe.views.local.count) == (2, 8)
        assert all(recipe.feature_size * 2**i % h == 0 for i, h in enumerate(recipe.num_heads))
