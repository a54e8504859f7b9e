"""A style is seen by the checker where it was drawn, and nowhere else."""

from __future__ import annotations

from checkpoints.training import drawing
from checkpoints.training.scenes import Figure, Scene, is_held_out
from checkpoints.training.styles import PLAIN, STYLES, Style, styled_scenes, training_scenes

CYAN, GRAY = STYLES.values()
RED = Scene("black", (Figure("large", "red", "cross"),))
OWN = Scene("black", (Figure("large", "cyan", "cross"),))


def test_drawn_styles_are_told_apart() -> None:
    scenes = styled_scenes((CYAN, GRAY), 30)
    for drawn in (PLAIN, CYAN, GRAY, CYAN.mixed(GRAY)):
        images = drawing.draw([drawn.drawn(scene) for scene in scenes], seed=5)
        for read in (PLAIN, CYAN, GRAY, CYAN.mixed(GRAY)):
            found = sum(read.shown(i, s) for i, s in zip(images, scenes, strict=True))
            assert found >= 29 if drawn == read else found == 0


def test_mixed_styles_change_what_either_changes() -> None:
    both = CYAN.mixed(GRAY)
    assert both == GRAY.mixed(CYAN) == Style(CYAN.colours, GRAY.grounds)
    assert (CYAN.changes(RED), CYAN.changes(OWN), GRAY.changes(OWN)) == (True, False, True)
    assert both.drawn(RED) == Scene("gray", (Figure("large", "cyan", "cross"),))


def test_scenes_of_a_style_keep_to_their_side_of_the_split() -> None:
    trained = training_scenes(CYAN, 200)
    assert not any(map(is_held_out, trained))
    assert sum(map(CYAN.changes, trained)) / 200 >= 0.75
    held_out = styled_scenes((CYAN, GRAY), 200)
    assert len(set(held_out)) == 200
    assert all(is_held_out(s) and CYAN.changes(s) and GRAY.changes(s) for s in held_out)
