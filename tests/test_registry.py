from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from idaa_lightly import registry
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import environment
from idaa_lightly.bench.run.inputs import SameInputs
from idaa_lightly.cli import main
from idaa_lightly.errors import IDAAError, PluginError
from idaa_lightly.plugin import Augmentation, Method

BASES = {"method": Method, "augmentation": Augmentation}
BUILT_IN = [(kind, e.name) for kind in BASES for e in registry.entries(kind) if e.distribution == "idaa-lightly"]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that writes a fake distribution (metadata, entry points, modules) and adds it to sys.path."""

    def put(name, entry_points, modules=None, *, version="1.0", metadata=True, folder="site"):
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = (f"[idaa_lightly.{kind}s]\n{name} = {target}\n" for kind, name, target in entry_points)
        (info / "entry_points.txt").write_text("\n".join(groups))
        for module, text in (modules or {}).items():
            (site / f"{module}.py").write_text(text)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(site)
        return site

    return put


def names(kind):
    return [entry.name for entry in registry.entries(kind)]


def test_built_ins_are_there():
    assert {("method", "simclr")} | {("augmentation", n) for n in ("clae", "idaa", "none", "random")} <= set(BUILT_IN)


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_built_ins_load(kind, name):
    plugin = registry.load(kind, name)
    assert issubclass(plugin, BASES[kind])
    assert plugin.__module__.startswith("idaa_lightly_plugins.")


@pytest.mark.parametrize("kind", BASES)
def test_listing_is_sorted_and_says_where_from(kind):
    assert names(kind) == sorted(names(kind))
    for entry in registry.entries(kind):
        assert entry.distribution
        assert entry.version
        assert ":" in entry.target


def test_listing_imports_neither_plugins_nor_torch(install):
    site = install("tripwire", [("augmentation", "tripwire", "tripwire:X")], {"tripwire": "raise SystemExit(3)"})
    code = """
        import json, sys
        sys.path.insert(0, sys.argv[1])
        from idaa_lightly.cli import main
        heavy = ("torch", "lightly", "torchvision", "pytorch_lightning", "sklearn", "matplotlib", "faiss", "kornia")
        unwanted = lambda: [n for n in (*heavy, "idaa_lightly_plugins", "tripwire") if n in sys.modules]
        found = {"import": unwanted()}
        for arguments in ("--help", "run --help", "--version", "plugins"):
            main(arguments.split(), standalone_mode=False)
            found[arguments] = unwanted()
        print(json.dumps(found))
    """.replace("\n        ", "\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, site], env={**os.environ, "COLUMNS": "150"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    listing, _, found = done.stdout.strip().rpartition("\n")
    assert set(map(tuple, json.loads(found).values())) == {()}
    assert len(json.loads(found)) == 5
    for text in ("tripwire:X", "tripwire 1.0", "simclr", "idaa_lightly_plugins.augmentations.idaa:IDAA"):
        assert text in listing


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("augmentation", "iddaa", " Did you mean 'idaa'?"),
        ("augmentation", "simclr", ""),
        ("method", "simcrl", " Did you mean 'simclr'?"),
        ("method", "idaa", ""),
        ("method", "", ""),
    ],
)
def test_unknown_name(kind, name, hint):
    with pytest.raises(PluginError) as caught:
        registry.load(kind, name)
    assert str(caught.value) == f"no {kind} {name!r}; installed: {', '.join(names(kind))}.{hint}"
    assert isinstance(caught.value, IDAAError)


BROKEN = {
    "no module": ("broken_not_there:X", None, "ModuleNotFoundError: No module named 'broken_not_there'"),
    "no attribute": ("broken_a:X", "", "AttributeError: "),
    "import error": ("broken_b:X", "import broken_not_there", "ModuleNotFoundError: No module named"),
    "syntax": ("broken_c:X", "def", "SyntaxError: "),
    "raises": ("broken_d:X", "raise RuntimeError('boom')", "RuntimeError: boom"),
    "exits": ("broken_e:X", "raise SystemExit('usage: boom')", "SystemExit: usage: boom"),
    "many lines": ("broken_f:X", "raise ImportError('boom\\n\\nread\\nthe manual')", "ImportError: boom"),
    "no target": ("", None, ""),
    "not a class": ("broken_g:X", "X = print", ""),
    "not a plugin": ("broken_h:X", "class X: pass", ""),
    "other kind": ("idaa_lightly_plugins.methods.simclr:SimCLR", None, ""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_fails_when_asked_for_and_by_name(install, case):
    target, text, reason = BROKEN[case]
    install("bad-luck", [("augmentation", "broken", target)], {} if text is None else {target.partition(":")[0]: text})
    assert "broken" in names("augmentation")
    assert registry.load("augmentation", "none")
    with pytest.raises(PluginError) as caught:
        registry.load("augmentation", "broken")
    assert f"augmentation 'broken' of bad-luck 1.0 cannot be imported from {target}: {reason}" in str(caught.value)


@pytest.mark.parametrize("case", ["no module", "exits", "many lines", "not a class"])
def test_a_broken_plugin_on_the_command_line(install, case):
    target, text, _ = BROKEN[case]
    install("bad-luck", [("augmentation", "broken", target)], {} if text is None else {target.partition(":")[0]: text})
    assert CliRunner().invoke(main, ["plugins"]).exit_code == 0
    assert CliRunner().invoke(main, ["plugins", "show", "none"]).exit_code == 0
    result = CliRunner().invoke(main, ["plugins", "show", "broken"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: augmentation 'broken' of bad-luck 1.0 cannot be imported")


def test_two_distributions_that_claim_a_name(install):
    install("rival-a", [("augmentation", "shared", "rival_a:X"), ("augmentation", "mine", "rival_m:X")],
            {"rival_m": "from idaa_lightly_plugins.augmentations.none import NoAugmentation as X"})  # fmt: skip
    install("rival-b", [("augmentation", "shared", "rival_b:X"), ("method", "simclr", "rival_b:Y")], version="2.0")
    assert names("augmentation").count("shared") == 2
    with pytest.raises(
        PluginError,
        match=r"^augmentation 'shared' is claimed by rival-a 1.0 and rival-b 2.0: uninstall one of them$",
    ):
        registry.load("augmentation", "shared")
    with pytest.raises(PluginError, match=r"method 'simclr' is claimed by idaa-lightly .* and rival-b 2.0"):
        registry.load("method", "simclr")
    assert registry.load("augmentation", "mine")
    result = CliRunner().invoke(main, ["plugins", "show", "shared"])
    assert (result.exit_code, result.stderr) == (2, f"Error: {_message('augmentation', 'shared')}\n")


def test_one_distribution_twice_on_the_path_is_no_claim(install):
    text = "from idaa_lightly_plugins.augmentations.none import NoAugmentation as X"
    for folder in ("first", "second"):
        install("twin", [("augmentation", "twin", "twin:X")], {"twin": text}, folder=folder)
    assert names("augmentation").count("twin") == 1
    assert registry.load("augmentation", "twin").__name__ == "NoAugmentation"


def test_a_distribution_without_metadata_breaks_nothing(install):
    install("ghost", [("augmentation", "none", "ghost:X"), ("augmentation", "ghost", "ghost:Y")], metadata=False)
    assert "ghost" in names("augmentation")
    assert registry.load("augmentation", "clae")
    with pytest.raises(PluginError, match=r"^augmentation 'none' is claimed by .*idaa-lightly"):
        registry.load("augmentation", "none")


def test_show_finds_a_name_of_either_kind():
    result = CliRunner().invoke(main, ["plugins", "show", "simlcr"])
    known = ", ".join(names("method") + names("augmentation") + names("backbone"))
    text = f"Error: no plugin 'simlcr'; installed: {known}. Did you mean 'simclr'?\n"
    assert (result.exit_code, result.stderr) == (2, text)


def _message(kind, name):
    with pytest.raises(PluginError) as caught:
        registry.load(kind, name)
    return str(caught.value)


@pytest.mark.parametrize("command", [[], *([name] for name in main.commands), ["plugins", "show"]])
def test_help_keeps_its_examples_in_lines(command):
    done = CliRunner().invoke(main, [*command, "--help"])
    assert done.exit_code == 0
    assert "\\b" not in done.output
    for line in done.output.splitlines():
        assert line.count("idaa-bench ") <= 1, line


def test_help_names_what_is_installed(install):
    """Listing the names imports no plugin, as `test_listing_imports_neither_plugins_nor_torch` shows."""
    install("wreck", [("method", "wreck", "wreck:X")], {"wreck": "1 / 0"})
    done = CliRunner().invoke(main, ["run", "--help"], env={"COLUMNS": "400"})
    text = " ".join(done.output.split())
    for kind in ("method", "augmentation"):
        assert f"[installed: {', '.join(names(kind))}]" in text
    assert "wreck" in text
    assert "cifar10" in text


def test_the_help_of_vae_is_about_vaes():
    text = " ".join(CliRunner().invoke(main, ["vae", "--help"], env={"COLUMNS": "400"}).output.split())
    assert "Epochs of the VAE. The paper takes 300." in text
    assert "Method on whose views the VAE is fitted." in text
    assert "several runs" not in text
    assert "Self-supervised method" not in text


PICKY = """
from idaa_lightly_plugins.augmentations.none import NoAugmentation

class Picky(NoAugmentation):
    @classmethod
    def refuses(cls, method):
        return "it wants batches of at least 512" if method.batch_size < 512 else ""
"""


def test_the_matrix_comes_from_what_plugins_declare(install, monkeypatch):
    install("picky", [("augmentation", "picky", "picky:Picky")], {"picky": PICKY})
    install("wreck", [("method", "wreck", "wreck:X")], {"wreck": "1 / 0"}, folder="other")
    done = CliRunner().invoke(main, ["plugins", "--matrix"])
    assert done.exit_code == 0
    header, *rows = [line.split() for line in done.output.splitlines()]
    assert header == ["method", *names("augmentation")]
    marks = {row[0]: dict(zip(header[1:], row[1:], strict=False)) for row in rows if row[0] in names("method")}
    assert list(marks) == [name for name in names("method") if name != "wreck"]
    assert (marks["simclr"]["idaa"], marks["simsiam"]["picky"]) == ("✓", "✓")
    number = marks["simclr"]["picky"]
    assert f"\n{number}  picky: it wants batches of at least 512\n" in done.output
    assert {name for name, row in marks.items() if row["metaug"] != "✓"} == {
        "dino", "dinov2", "fastsiam", "lejepa", "mmcr", "swav", "visreg"
    }  # fmt: skip
    assert {name for name, row in marks.items() if row["idaa"] != "✓"} == {"wmse"}
    assert "idaa: its search starts at the view itself, where the gradient of this method's loss is zero" in done.output
    assert "left out: method 'wreck' of wreck 1.0 cannot be imported from wreck:X: ZeroDivisionError" in done.output


def test_a_refused_pair_is_refused_in_a_sentence(install):
    install("picky", [("augmentation", "picky", "picky:Picky")], {"picky": PICKY})
    done = CliRunner().invoke(main, ["run", "--method", "simclr", "--aug", "picky"])
    assert done.exit_code == 2
    assert done.output == "Error: 'picky' does not go with 'simclr': it wants batches of at least 512\n"


def test_the_code_of_an_installed_plugin_is_known_by_its_hash(install, monkeypatch):
    monkeypatch.setattr(registry, "_modules", {})
    text = "from idaa_lightly_plugins.augmentations.clae import CLAE\nclass Noise(CLAE): pass\n"
    install("noisy", [("augmentation", "noisy", "noisy_views:Noise")], {"noisy_views": text})
    registry.load("augmentation", "clae")
    registry.load("augmentation", "noisy")
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert registry.sources()["noisy 1.0, noisy_views"] == digest
    assert not any("clae" in name for name in registry.sources())
    inputs = SameInputs(RunConfig(method="simclr", aug="noisy"), "digits", "a").inputs
    assert inputs["the plugin noisy 1.0, noisy_views"] == digest
    versions = environment(torch.device("cpu"), 1)["versions"]
    assert versions["plugin noisy 1.0, noisy_views"] == f"sha256 {digest}"


@pytest.fixture
def plugin_file(tmp_path, monkeypatch):
    """Return the path of a file with an augmentation, and forget the files of other tests."""
    monkeypatch.setattr(registry, "_files", {})
    path = tmp_path / "my_views.py"
    path.write_text(
        "from idaa_lightly.plugin import Augmentation\n"
        "from idaa_lightly_plugins.augmentations.clae import CLAE\n\n\n"
        'class RGBNoise(CLAE):\n    """Noise."""\n'
    )
    return path


def test_a_file_is_a_plugin(plugin_file):
    before = names("augmentation")
    result = CliRunner().invoke(main, ["plugins", "show", "rgb-noise", "--plugin", str(plugin_file)])
    assert result.exit_code == 0, result.output
    assert "augmentation rgb-noise: Noise." in result.output
    assert [name for name in names("augmentation") if name not in before] == ["rgb-noise"], "CLAE is only imported"
    registry.add_file(plugin_file)
    assert names("augmentation").count("rgb-noise") == 1
    assert list(registry.added_files().values()) == [hashlib.sha256(plugin_file.read_bytes()).hexdigest()]


def test_a_plugin_of_a_file_that_is_there_already(plugin_file):
    plugin_file.write_text(plugin_file.read_text().replace("RGBNoise", "Clae"))
    result = CliRunner().invoke(main, ["plugins", "show", "clae", "--plugin", str(plugin_file)])
    text = " ".join(result.stderr.split())
    assert "'clae' is claimed by idaa-lightly" in text
    assert text.endswith(": rename the class in my_views.py")


def test_a_run_records_the_hash_of_a_plugin_file_but_never_its_path(plugin_file):
    options = ["--aug", "rgb-noise", "--limit-train", "64", "--backbone", "resnet9-w4", "--epochs", "1"]
    options += ["--batch-size", "32", "--accelerator", "cpu", "--out", "run"]
    refused = CliRunner().invoke(main, ["run", *options])
    assert "no augmentation 'rgb-noise'" in refused.stderr
    result = CliRunner().invoke(main, ["run", *options, "--plugin", str(plugin_file)])
    assert result.exit_code == 0, result.output
    record = json.loads(Path("run/record.json").read_text())
    digest = hashlib.sha256(plugin_file.read_bytes()).hexdigest()
    assert record["versions"]["plugin my_views.py"] == f"sha256 {digest}"
    assert "my_views" not in Path("run/config.toml").read_text()
    assert f"plugin files my_views.py {digest[:9]}" in CliRunner().invoke(main, ["compare", "run"]).output


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be imported: FileNotFoundError"),
        ("x = (", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("from idaa_lightly.plugin import Augmentation", "my_views.py defines no plugin, but expected a subclass of"),
    ],
)
def test_a_file_that_is_no_plugin(plugin_file, content, text):
    plugin_file.unlink() if content is None else plugin_file.write_text(content)
    result = CliRunner().invoke(main, ["plugins", "--plugin", str(plugin_file)])
    assert (result.exit_code, text in " ".join(result.stderr.split())) == (2, True), result.stderr
