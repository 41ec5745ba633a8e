"""What is read off towers that see tiles: each visual token's own cell, by hand; newline tokens have none."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vispco
from test_vision import read, sharpened, tower_of
from vispco.models.families import adapter_for
from vispco.pruning.methods import make_method
from vispco.pruning.methods.hiprune import neighbourhood
from vispco.pruning.schedules import Ratios, Step
from vispco.testing import checks
from vispco.testing.tiny import TINY

TILED = ("llava_next", "llava_onevision")


def sharp(name: str) -> Any:
    """A tiny model with a sharpened tower."""
    model = TINY[name].build()
    torch.manual_seed(0)
    return sharpened(model)


def is_cell(adapter: Any, batch: Any) -> Any:
    """bool [N]: False at newlines, which equal the model's own newline embedding."""
    features = adapter.encode_images(batch)
    return ~(features == adapter.model.model.image_newline).all(dim=-1)


def test_llava_next_gives_each_token_its_tiles_cell() -> None:
    """Four tiles of 2 x 2 cells, of whose four rows the first and the last are padding."""
    model, batch = sharp("llava_next"), TINY["llava_next"].batch([(3, 1, 6)])
    extras, plain = read(model, batch), tower_of(model, batch["pixel_values"][0])
    attention = plain.attentions[0].mean(dim=1)[:, 0, 1:]
    states = plain.hidden_states[1][:, 1:]
    expected, features = list(attention[0]), list(states[0])
    for row in (1, 2):
        for column in range(4):
            tile, cell = 1 + row // 2 * 2 + column // 2, row % 2 * 2 + column % 2
            expected.append(attention[tile, cell])
            features.append(states[tile, cell])
        expected.append(torch.tensor(0.0))
        features.append(torch.zeros(16))
    assert extras.source == "cls"
    assert torch.allclose(extras.attention, torch.stack(expected), atol=1e-6)
    assert torch.allclose(extras.features, torch.stack(features), atol=1e-5)
    assert float(attention.std()) > 0.01
    newlines = [8, 13]
    assert (extras.among == 0).nonzero()[:, 0].tolist() == newlines
    for values in (extras.pseudo_attention, extras.keys, extras.last_keys):
        assert not values[newlines].any()


@pytest.mark.parametrize("most", [9, 1])
def test_llava_onevision_shrinks_what_is_read_as_it_shrinks_features(most: int) -> None:
    """Two tiles of 3 x 3 cells, six columns cut to four; with ``most`` 1 they become 2 x 3."""
    model, batch = sharp("llava_onevision"), TINY["llava_onevision"].batch([(3, 1, 6)])
    model.config.vision_aspect_ratio = f"anyres_max_{most}"
    adapter = adapter_for(model)
    with torch.no_grad():
        features, extras = adapter.encode_with_extras(batch)
    plain = tower_of(model, batch["pixel_values"][0])
    received = plain.attentions[-1].mean(dim=(1, 2)).view(3, 3, 3)
    grid = torch.cat([received[1], received[2]], dim=1)[:, 1:5]
    if most == 1:
        grid = F.interpolate(grid[None, None], [2, 3], mode="bilinear")[0, 0]
    expected = torch.cat([received[0].flatten(), F.pad(grid, (0, 1)).flatten()])
    assert len(features) == len(extras) == (24 if most == 9 else 9 + 2 * 4)
    assert torch.allclose(extras.attention, expected, atol=1e-6)


def test_several_pictures_of_llava_onevision_are_a_thumbnail_and_a_newline_each() -> None:
    model, batch = sharp("llava_onevision"), TINY["llava_onevision"].batch([(3, 2, 6)])
    batch["batch_num_images"] = torch.tensor([2])
    plain, adapter = tower_of(model, batch["pixel_values"][:, 0]), adapter_for(model)
    with torch.no_grad():
        extras = adapter.encode_with_extras(batch)[1]
    received = plain.attentions[-1].mean(dim=(1, 2))
    assert torch.allclose(extras.attention, F.pad(received, (0, 1)).flatten(), atol=1e-6)


def test_videos_of_llava_onevision_stand_where_the_prompt_has_them() -> None:
    """The video comes first in the prompt; the model encodes pictures first."""
    tiny: Any = TINY["llava_onevision"]
    model, batch = sharp("llava_onevision"), tiny.video_batch()
    extras = read(model, batch)
    frames = tower_of(model, batch["pixel_values_videos"][0]).attentions[-1].mean(dim=(1, 2)).view(3, 1, 3, 3)
    pooled = F.interpolate(frames, size=[2, 2], mode="bilinear").flatten()
    assert torch.allclose(extras.attention[:13], F.pad(pooled, (0, 1)), atol=1e-6)
    picture = tower_of(model, batch["pixel_values"][0]).attentions[-1].mean(dim=(1, 2))
    assert torch.allclose(extras.attention[13:22], picture[0], atol=1e-6)


def test_generate_reads_pictures_and_videos_as_a_forward_does() -> None:
    tiny: Any = TINY["llava_onevision"]
    model, batch = sharp("llava_onevision"), tiny.video_batch()
    with torch.no_grad(), vispco.prune(model, method="visionzip", schedule=Step(1, 0.4)) as session:
        model(**batch)
        kept = session.kept(1)
        model.generate(**batch, max_new_tokens=2, do_sample=False)
        assert session.kept(1) == kept


# --- what methods do with newlines -----------------------------------------------------------------

LAST = [
    ("visionzip", {"contextual": 0}),
    ("visionzip", {}),
    ("visionzip", {"contextual": 1}),
    ("scope", {}),
    ("hiprune", {"alpha": 0.5}),
    ("prumerge", {}),
    ("prumerge", {"plus": True}),
]


@pytest.mark.parametrize(("method", "parameters"), LAST, ids=str)
@pytest.mark.parametrize("name", TILED)
def test_newlines_go_first(name: str, method: str, parameters: dict[str, Any]) -> None:
    """At every count but those that leave no other token."""
    model, batch = sharp(name), TINY[name].batch([(3, 1, 6)])
    with torch.no_grad():
        cells = is_cell(adapter_for(model), batch)
    total, able = len(cells), int(cells.sum())
    assert total > able
    for count in range(1, total + 1):
        with (
            torch.no_grad(),
            vispco.prune(model, method=make_method(method, parameters), schedule=Step(1, count / total)) as session,
        ):
            model(**batch)
        kept = [place - 3 for place in session.kept(1)[0]]
        assert len(kept) == count
        assert int(cells[kept].sum()) == min(count, able)


@pytest.mark.parametrize(("method", "parameters"), [*LAST, ("vispruner", {}), ("idpruner", {})], ids=str)
@pytest.mark.parametrize("name", TILED)
def test_flops_equal_the_counter(name: str, method: str, parameters: dict[str, Any]) -> None:
    """Newlines are in the products, so that formulas over visual tokens hold."""
    for schedule in (Step(0, 0.5), Step(2, 0.0), Ratios([1, 0.75, 0.3, 0.1])):
        checks.check_flops(TINY[name], [(2, 2, 3), (6, 0, 2)], make_method(method, parameters), schedule)


def test_visionzip_merges_no_newline() -> None:
    """Its rule over the cells alone: dominant ones, every so-many-th of the rest as a target, the others into these."""
    model, batch = sharp("llava_next"), TINY["llava_next"].batch([(3, 1, 6)])
    extras, entering = read(model, batch), []
    with torch.no_grad():
        cells = is_cell(adapter_for(model), batch).nonzero()[:, 0].tolist()
    layer = model.model.language_model.layers[0].input_layernorm
    hook = layer.register_forward_pre_hook(lambda module, args: entering.append(args[0][0]))
    method, count, targets = make_method("visionzip", {"contextual": 0.5}), 6, 3
    with torch.no_grad():
        model(**batch)
        with vispco.prune(model, method=method, schedule=Step(0, count / 14)) as session:
            model(**batch)
    hook.remove()
    plain, pruned = entering[0][3:17], entering[1][3 : 3 + count]
    dominant = extras.attention.topk(count - targets).indices.tolist()
    rest = [i for i in cells if i not in dominant]
    aims = rest[:: len(rest) // targets][:targets]
    keys = F.normalize(extras.keys.view(14, 2, 8).mean(dim=1), dim=-1)
    expected = {i: plain[i].clone() for i in dominant}
    for aim in aims:
        joined = [i for i in rest if i not in aims and max(aims, key=lambda a, i=i: float(keys[i] @ keys[a])) == aim]
        expected[aim] = plain[aim] + (plain[joined].mean(dim=0) if joined else 0)
    assert [place - 3 for place in session.kept(0)[0]] == sorted(expected)
    assert torch.allclose(pruned, torch.stack([expected[i] for i in sorted(expected)]), atol=1e-5)


def test_prumerge_adds_no_newline(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neighbour each, and a token of the dropped ones; a newline's state is made so large that it would show."""
    monkeypatch.setattr("vispco.pruning.methods.prumerge.NEIGHBOURS", 1)
    model, batch, entering = sharp("llava_next"), TINY["llava_next"].batch([(3, 1, 6)]), []
    with torch.no_grad():
        model.model.image_newline.fill_(1e4)
    hook = model.model.language_model.layers[0].input_layernorm.register_forward_pre_hook(
        lambda module, args: entering.append(args[0][0])
    )
    with torch.no_grad(), vispco.prune(model, method="prumerge", schedule=Step(0, 5 / 14)):
        model(**batch)
    hook.remove()
    assert float(entering[0][3:8].abs().max()) < 1e3


def test_neighbours_of_hiprune_are_cells() -> None:
    """The last cell of a row has a newline on its right, which is not kept for it."""
    model, batch = sharp("llava_next"), TINY["llava_next"].batch([(3, 1, 6)])
    with torch.no_grad():
        extras = adapter_for(model).encode_with_extras(batch, middle=True)[1]
    lengths, anchor = torch.tensor([2] * 4 + [5] * 10), int(extras.middle.argmax())
    around = [i for i in neighbourhood(torch.tensor([anchor]), lengths).tolist() if i not in (8, 13)]
    with torch.no_grad(), vispco.prune(model, method="hiprune", alpha=0.5, schedule=Step(0, 8 / 14)) as session:
        model(**batch)
    assert {place + 3 for place in around} <= set(session.kept(0)[0])


def test_vispruner_keeps_newlines_among_what_is_unlike_the_rest() -> None:
    model, batch = sharp("llava_onevision"), TINY["llava_onevision"].batch([(3, 1, 6)])
    with torch.no_grad():  # patches are alike, so that only newlines are not
        model.model.vision_tower.post_layernorm.weight.fill_(0.01)
        model.model.vision_tower.post_layernorm.bias.fill_(1.0)
        newlines = (~is_cell(adapter_for(model), batch)).nonzero()[:, 0].tolist()
    with torch.no_grad(), vispco.prune(model, method="vispruner", schedule=Step(0, 20 / 24)) as session:
        model(**batch)
    assert {place + 3 for place in newlines} <= set(session.kept(0)[0])


@pytest.mark.filterwarnings("ignore:the prune block")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", TILED)
def test_a_copy_in_a_block_is_plain(name: str, copied: Any) -> None:
    model, batch = TINY[name].build(), TINY[name].batch([(3, 1, 6)])
    with vispco.prune(model, method="visionzip", schedule=Step(0, 0.5)):
        other = copied(model)
    with torch.no_grad():
        assert torch.equal(other(**batch).logits, model(**batch).logits)
        with vispco.prune(other, method="visionzip", schedule=Step(0, 0.5)) as session:
            other.generate(**batch, max_new_tokens=2, do_sample=False)
        visual = int((batch["input_ids"] == model.config.image_token_id).sum())
        assert session.counts.tolist() == [[visual // 2] * 4]
