"""Recipes are found by name, copied by `lit-lm init`, and installed with the wheel."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Command

from lit_lm.cli.recipes import find_config, recipes
from lit_lm.kernels import build

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


def printed_config(lit_lm: Command, capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, dict[str, object]]:
    with pytest.raises(SystemExit):
        lit_lm("fit", *args, "--print_config")
    config: dict[str, dict[str, object]] = yaml.safe_load(capsys.readouterr().out)
    return config


def test_each_config_of_the_repository_is_a_recipe() -> None:
    assert sorted(f"{name}.yaml" for name in recipes()) == FILES
    assert {"quick.yaml", "sizes/tiny.yaml"} <= set(FILES)


@pytest.mark.parametrize("name", ["quick", "chinese"])
def test_a_name_stands_for_the_recipe(name: str, lit_lm: Command, capsys: pytest.CaptureFixture[str]) -> None:
    by_path = printed_config(lit_lm, capsys, f"--config={ROOT / 'configs' / name}.yaml")
    assert printed_config(lit_lm, capsys, "--config", name) == by_path


def test_a_name_stands_for_a_models_size(lit_lm: Command, capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(lit_lm, capsys, "--config=chinese", "--model.net=sizes/medium")
    expected = yaml.safe_load((ROOT / "configs/sizes/medium.yaml").read_text(encoding="utf-8"))
    assert config["model"]["net"].items() >= expected.items()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "size"), [("fsdp", 1), ("tensor-parallel", 2)])
def test_a_name_stands_for_a_strategy(
    name: str, size: int, lit_lm: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    config = printed_config(lit_lm, capsys, "--trainer.devices=2", f"--trainer=strategies/{name}")
    assert config["trainer"]["devices"] == "2"  # type: ignore[index]
    strategy: Any = config["trainer"]["strategy"]  # type: ignore[index]
    assert strategy["class_path"] == "lit_lm.training.sharding.FullyShardedStrategy"
    assert strategy["init_args"]["tensor_parallel_size"] == size


def test_a_strategy_may_be_a_class_or_a_name_of_lightnings(lit_lm: Command, capsys: pytest.CaptureFixture[str]) -> None:
    fully_sharded = "lit_lm.training.sharding.FullyShardedStrategy"
    for given in (f"--trainer.strategy={fully_sharded}", f"--config={{trainer: {{strategy: {fully_sharded}}}}}"):
        strategy: Any = printed_config(lit_lm, capsys, given)["trainer"]["strategy"]  # type: ignore[index]
        assert strategy["class_path"] == fully_sharded
    config = printed_config(lit_lm, capsys, "--trainer.strategy", "ddp")
    assert config["trainer"]["strategy"] == "ddp"  # type: ignore[index]


def test_a_strategy_that_cannot_divide_the_model_is_refused_before_other_processes_start(lit_lm: Command) -> None:
    options = ("--trainer=strategies/tensor-parallel", "--trainer.devices=3", "--trainer.accelerator=cpu")
    message = lit_lm("fit", "--config=gpt2-124m", "--model.net.d_ff=3071", *options, fails=True)
    for name in ("model.net.vocab_size is 50,257", "model.net.d_ff is 3,071", "number of processes, 3"):
        assert name in message


def test_a_file_goes_before_the_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").write_text("name: mine\n")
    (tmp_path / "quick").mkdir()
    assert find_config("small").read_text(encoding="utf-8") == "name: mine\n"
    assert find_config("quick") == recipes()["quick"]
    assert find_config("small", tmp_path / "other") == recipes()["small"]


def test_a_missing_config_is_reported_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from lit_lm.__main__ import main\n"
        "try: main(['fit', '--config=configs/quick.yaml'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("lit-lm: error: there is no config configs/quick.yaml; ")
    assert done.stderr.endswith("as in --config quick, or copy all recipes with lit-lm init\n")


def test_init_copies_the_recipes_and_keeps_existing_files(tmp_path: Path, lit_lm: Command) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/small.yaml").write_text("mine")
    lines = lit_lm("init").splitlines()
    assert lines[-1] == "next: lit-lm fit --config configs/quick.yaml"
    assert "kept  configs/small.yaml, which already exists" in lines
    assert [line.removeprefix("wrote configs/") for line in lines if line.startswith("wrote ")] == [
        name for name in FILES if name != "small.yaml"
    ]
    assert (tmp_path / "configs/small.yaml").read_text() == "mine"
    for name in set(FILES) - {"small.yaml"}:
        assert (tmp_path / "configs" / name).read_bytes() == (ROOT / "configs" / name).read_bytes()
    assert "wrote elsewhere/small.yaml" in lit_lm("init", "elsewhere")
    assert "small.yaml is not a folder" in lit_lm("init", "configs/small.yaml", fails=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, unpacked, and the source distribution."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for path in (*ROOT.glob("*.*"), ROOT / "LICENSE", ROOT / "Makefile", ROOT / "Dockerfile"):
        if path.is_file():
            shutil.copy(path, source)
    for name in ("lit_lm", "configs", "docs", "notebooks", "tests", "tools"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    code = f"from setuptools import build_meta as b; b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=300)
    zipfile.ZipFile(next(out.glob("*.whl"))).extractall(out / "unpacked")
    return out


def test_the_wheel_contains_recipes_and_c_files_and_trains_in_an_empty_folder(built: Path, tmp_path: Path) -> None:
    folder = built / "unpacked" / "lit_lm" / "configs"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")) == FILES
    kernels = {path.name for path in (built / "unpacked" / "lit_lm" / "kernels").iterdir()}
    assert kernels == {path.name for path in build.FOLDER.iterdir() if path.is_file()}
    where = "import lit_lm; print(lit_lm.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(built / "unpacked")}
    for arguments, expected in (
        (["-c", where], f"{built / 'unpacked' / 'lit_lm' / '__init__.py'}\n"),
        (["-m", "lit_lm", "fit", "--config", "quick", "--print_config"], "name: quick\n"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert expected in done.stdout
    assert not list(tmp_path.iterdir())


def test_the_source_distribution_has_what_the_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
    needed = {f"{folder}/{name}" for folder in ("configs", "lit_lm/configs") for name in FILES}
    needed |= {"docs/data.md", "docs/loss_curves.png", "constraints.txt", "tests/conftest.py", "tests/helpers/texts.py"}
    needed |= {"notebooks/1_first_model.ipynb", "configs/slurm/fit.sbatch", "Dockerfile"}
    assert needed | {"README.zh-CN.md", "Makefile", "tools/ablate.py"} <= members.keys()
    assert all(members[name].isfile() for name in needed)
