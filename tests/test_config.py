import pytest

from comp import config
from comp.errors import Refused


def test_what_ships_loads():
    for competition in config.shipped_names("competitions"):
        config.load_config(competition)
    for recipe in config.shipped_names("recipes"):
        # A report's recipe names its competition's classes.
        made_for = {"mars": "mars", "pets": "pets", "voc": "voc2007"}.get(recipe.partition("-")[0], "demo")
        config.load_config(made_for, recipe)


def test_an_override_is_read_as_toml_and_else_as_text():
    loaded = config.load_config(
        "mars", overrides=["epochs=3", "model.encoder=resnet34", "loss.terms={dice=1.0, focal=0.5}"]
    )
    assert (loaded.epochs, loaded.model.encoder) == (3, "resnet34")
    assert loaded.loss.terms == {"dice": 1.0, "focal": 0.5}


def test_a_recipe_is_laid_over_its_base(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('base = "default"\nepochs = 2\nloss = { terms = { dice = 1.0 } }\n')
    loaded, base = config.load_config("demo", str(own)), config.load_config("demo", "default")
    assert (loaded.recipe, loaded.epochs, loaded.loss.terms) == ("own", 2, {"dice": 1.0})
    assert loaded.loss.class_weights == base.loss.class_weights
    assert loaded.model == base.model


def test_what_is_drawn_more_often_replaces_the_bases(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('base = "mars-a"\noversample = { sand = 2.0 }\n')
    assert config.load_config("mars", "mars-a").oversample and config.load_config("mars", str(own)).oversample == {
        "sand": 2.0
    }


def test_paths_in_a_toml_are_meant_from_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    demo = (config.SHIPPED / "competitions/demo.toml").read_text().replace('recipe = "quick"', 'recipe = "own.toml"')
    (tmp_path / "mine.toml").write_text(demo)
    (tmp_path / "own.toml").write_text('base = "below.toml"')
    (tmp_path / "below.toml").write_text('base = "default"\nepochs = 2\n')
    assert config.load_config(str(tmp_path / "mine.toml")).epochs == 2


def test_a_class_cannot_be_the_ignored_label():
    values = {"name": "own", "classes": ["building", "road"], "arrays": {"ignore": 0}}
    with pytest.raises(Refused, match=r"arrays.ignore: 0 is the class 'building'.*arrays.labels"):
        config.validate_config({"competition": values})
    values["arrays"]["labels"] = [1, 2]
    assert config.validate_config({"competition": values}).competition.arrays.ignored == 255


def test_options_stay_where_the_architecture_is_named_anew_but_the_same(tmp_path):
    (tmp_path / "below.toml").write_text("model = { options = { encoder_depth = 3 } }")
    own = tmp_path / "own.toml"
    own.write_text('base = "below.toml"\nmodel = { architecture = "Unet" }')
    assert config.load_config("demo", str(own)).model.options == {"encoder_depth": 3}
    assert config.load_config("demo", str(own), ["model.architecture=Unet"]).model.options == {"encoder_depth": 3}
    assert not config.load_config("demo", str(own), ["model.architecture=FPN"]).model.options


def test_what_is_no_configuration_at_all_is_refused():
    for value in ([], None, 3):
        with pytest.raises(Refused, match=r"^configuration: input should be a table"):
            config.validate_config(value)


def test_it_survives_json():
    loaded = config.load_config("mars")
    assert config.validate_config(loaded.model_dump(mode="json")) == loaded
    assert config.first_difference(loaded, loaded) is None


def test_the_first_difference_names_its_key():
    one, other = config.load_config("mars"), config.load_config("mars", overrides=["optimizer.lr=0.5"])
    assert config.first_difference(one, other).startswith("optimizer.lr: ")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.encodr=x", "model.encodr: no such key; did you mean 'encoder'?"),
        ("epochs=many", "epochs: input should be a valid integer"),
        ("epochs=0", "epochs: input should be greater than or equal to 1"),
        ("epochs=2.5", "epochs: input should be a valid integer"),
        ("optimizer.lr=nan", "optimizer.lr: input should be a finite number"),
        ("loss.terms={dise=1.0}", "loss.terms.dise: input should be 'cross_entropy'"),
        ("loss.class_weights=sqr", "loss.class_weights: input should be 'none', 'inverse' or 'sqrt'"),
        ("loss.class_weights=2", "or 'sqrt', or less than or equal to 1, or a table, not 2"),
        ("oversample={boulder=2.0}", "oversample.boulder: no such class"),
        ('competition.classes=["a", "b", "a"]', "competition.classes: 'a' is there 2 times"),
        ("competition.submission={format='rle'}", 'competition.submission.rows: "image" is one mask for an image'),
        (
            "augment.transforms=[{name='Rotate', fill_mask=255}]",
            "augment.transforms.0.fill_mask: 255 is not a label; 0 to 4 would fit",
        ),
        ("competition.arrays.labels=[0, 255]", "competition.arrays.labels: 2 values; 5, one for each class"),
        ("competition.metric.weights=[0.0,0.0,0.0,0.0,0.0]", "metric.weights: 0 for every scored class"),
        ("competition.metric.empty=1", 'metric: average = "per_image" would fit beside empty and thresholds'),
        ("competition.metric.thresholds=[0.5]", 'metric: average = "per_image" would fit beside empty and thresholds'),
        ("competition.source.border=500", "competition.source.border: input should be less than or equal to 31"),
        (
            "loss.class_weights={sand=-1.0}",
            "loss.class_weights.sand: input should be greater than or equal to 0, not -1.0",
        ),
        ("epochs.more=1", "epochs is a value, not a section"),
        ("epochs", "write key=value"),
    ],
)
def test_a_bad_value_is_named_with_what_would_fit(override, says):
    with pytest.raises(Refused) as refused:
        config.load_config("mars", overrides=[override])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_names_and_broken_files_are_refused(tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("name = [")
    circle = tmp_path / "circle.toml"
    circle.write_text(f'base = "{circle}"')
    for competition, recipe, says in [
        ("mras", None, "did you mean 'mars'"),
        ("mars", "defualt", "did you mean 'default'"),
        (str(broken), None, "not valid TOML"),
        (str(tmp_path / "mras.toml"), None, "No such file or directory; did you mean 'mars'"),
        ("mars", "none.toml", "No such file or directory; there are default, "),
        ("mars", str(circle), "is based on it"),
    ]:
        with pytest.raises(Refused, match=says):
            config.load_config(competition, recipe)


def test_a_byte_order_mark_before_toml_is_read_over(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('base = "default"\nepochs = 2\n', encoding="utf-8-sig")
    assert config.load_config("demo", str(own)).epochs == 2


def test_a_model_that_is_not_a_section_is_refused_before_an_architecture_is_set(tmp_path):
    (tmp_path / "own.toml").write_text('model = "Unet"')
    with pytest.raises(Refused, match="model is a value, not a section"):
        config.load_config("demo", str(tmp_path / "own.toml"), ["model.architecture=FPN"])
