"""Settings of a training: the file, overrides, and a sentence for each mistake."""

from __future__ import annotations

import pytest
from troupe.training.config.reading import ConfigError, as_tables
from troupe.training.recipes.registry import RECIPES
from troupe.training.run import settings_of
from troupe_tools.pack import ROOT

EXAMPLES = sorted((ROOT / "training" / "recipes").glob("*.toml"))
TEXT = """
[recipe]
name = "mip_adapter"
drop_text = 0.1
[data]
folder = "pictures"
subjects = 2
[training]
lr = 1
"""


@pytest.fixture
def settings(tmp_path):
    def read(text=TEXT, *overrides):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return settings_of(path, overrides)

    return read


def test_the_file_and_the_defaults(settings):
    config = settings()
    assert (config.name, config.recipe.drop_text, config.recipe.drop_names) == ("mip_adapter", 0.1, 0.0)
    assert (config.data.folder, config.data.subjects, config.data.resolution) == ("pictures", 2, 512)
    assert config.training.lr == 1.0 and isinstance(config.training.lr, float)


def test_overrides(settings):
    config = settings(
        TEXT, "lr=1e-5", "data.folder=some pictures", "training.ema = true", "drop_names=0.5", 'log="tensorboard"'
    )
    assert (config.training.lr, config.training.ema, config.recipe.drop_names) == (1e-5, True, 0.5)
    assert (config.data.folder, config.output.log) == ("some pictures", "tensorboard")
    assert settings(TEXT.replace("drop_text = 0.1", ""), "recipe.name=ip_adapter").name == "ip_adapter"


def test_settings_as_plain_values(settings):
    tables = as_tables(settings())
    assert tables["recipe"]["name"] == "mip_adapter" and tables["training"]["lr"] == 1.0
    assert set(tables) == {"recipe", "base", "data", "training", "output", "sheet"}


@pytest.mark.parametrize(
    "change, expected",
    [
        (("lr = 1", "lrr = 1"), "'lrr'. Did you mean 'lr'?"),
        (("lr = 1", "resolution = 1"), "'resolution'. Move it to [data]."),
        (("[training]", "[trainin]"), "'trainin'. Did you mean 'training'?"),
        (("[recipe]", "seed = 1\n[recipe]"), "only tables [recipe], [base]"),
        (("lr = 1", "lr = true"), "a number as 'training.lr' in "),
        (("lr = 1", "lr = '1'"), "The default is 0.0001."),
        (("lr = 1", "lr = 0"), "more than 0.0 as 'training.lr'"),
        (("lr = 1", "lr = nan"), "a finite number"),
        (("subjects = 2", "subjects = 2.5"), "a whole number as 'data.subjects'"),
        (("subjects = 2", "subjects = 0"), "at least 1"),
        (("drop_text = 0.1", "drop_text = 1.1"), "at most 1.0"),
        (("lr = 1", "precision = 'fp61'"), "Did you mean 'fp16'?"),
        (("mip_adapter", "mip_adaptor"), "Did you mean 'mip_adapter'?"),
        (('name = "mip_adapter"', ""), "'name' in [recipe]"),
        (("lr = 1", "lr = "), "to be a TOML file"),
    ],
)
def test_a_mistake_in_the_file_is_a_sentence(settings, change, expected):
    with pytest.raises(ConfigError) as error:
        settings(TEXT.replace(*change))
    assert expected in str(error.value) and "recipe.toml" in str(error.value)


@pytest.mark.parametrize(
    "override, expected",
    [
        ("lrr=1", "'lrr'. Did you mean 'lr'?"),
        ("seed=1", "Write training.seed or sheet.seed."),
        ("training.lrr=1", "Did you mean 'lr'?"),
        ("trainin.lr=1", "'trainin'. Did you mean 'training'?"),
        ("lr", "--set key=value"),
        ("lr=fast", "a number as 'training.lr' in --set lr=fast, found 'fast'"),
    ],
)
def test_a_mistake_in_an_override_is_a_sentence(settings, override, expected):
    with pytest.raises(ConfigError) as error:
        settings(TEXT, override)
    assert expected in str(error.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="training/recipes has examples"):
        settings_of(tmp_path / "none.toml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read(path):
    config = settings_of(path)
    assert config.name in RECIPES and config.output.folder == f"output/training/{path.stem}"


def test_there_are_examples_for_both_worlds():
    kinds = {settings_of(path).base.kind for path in EXAMPLES}
    assert kinds == {"rehearsal", "diffusers"}
    assert {settings_of(path).name for path in EXAMPLES} == set(RECIPES)
