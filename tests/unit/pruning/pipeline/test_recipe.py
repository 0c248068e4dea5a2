from pathlib import Path

import pytest
from small_run import RECIPE

from pruning.errors import RecipeError
from pruning.pipeline.recipe import load_recipe, packaged_recipes


def test_packaged_recipes_load_and_bear_their_names() -> None:
    names = packaged_recipes()
    assert {"paper", "activation", "espalier"} <= set(names)
    for name in names:
        assert load_recipe(name).name == name


def test_which_recipes_ask_about_the_whole_vocabulary() -> None:
    asking = [name for name in packaged_recipes() if load_recipe(name).distils_vocabulary]
    assert asking == ["activation", "paper"]


def test_a_file_is_a_recipe_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE)
    assert [stage.name for stage in load_recipe(str(file)).stages] == ["width", "mlp", "depth"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name = ", "name "), "not TOML"),
        (("importance", "importence"), "stages.0.importance"),
        (("heads = 0.5", "heads = 1.5"), "stages.0.keep.heads"),
        (("heads = 0.5", "hands = 0.5"), "stages.0.keep"),
        (('name = "mlp"', 'name = "width"'), "same name"),
        (("mlp = 0.5", "hidden = 0.9"), "more than an earlier one left"),
        (("forward_kl", "reverse_kl"), "reverse_kl"),
        (("training = { epochs = 2, learning_rate = 3e-3, tokens_per_batch = 1024 }", ""), "no training"),
    ],
)
def test_errors_name_the_file_and_the_place(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(RECIPE.replace(*change, 1))
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(RecipeError, match="activation, espalier, paper"):
        load_recipe("papper")


def test_a_file_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(RECIPE.replace("Three", "Drei Stücke,").encode("latin-1"))
    with pytest.raises(RecipeError, match=r"mine\.toml: cannot be read .* UTF-8"):
        load_recipe(str(file))
