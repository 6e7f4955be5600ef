"""How setup.py finds a CUDA compiler: fake toolkits in a temporary folder."""

from pathlib import Path

import pytest

from build_support import cuda

NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  *--dryrun*) echo "#$ TOP={home}" ;;
  *) {compile} ;;
esac
"""
WORKS = 'for last; do :; done; echo "$*" >> {home}/calls; : > "$last"'
FAILS = "echo 'In file included'; echo 'smoke.cu: error: unsupported GNU version!'; exit 1"


def make_toolkit(home: Path, version: str = "13.2", body: str = WORKS, lib: str = "lib64"):
    (home / "bin").mkdir(parents=True)
    (home / lib).mkdir(parents=True)
    (home / lib / cuda.STATIC_RUNTIME).touch()
    script = NVCC.format(version=version, home=home, compile=body.format(home=home))
    (home / "bin" / "nvcc").write_text(script)
    (home / "bin" / "nvcc").chmod(0o755)
    return home


@pytest.fixture
def find(tmp_path):
    """find_toolkit on a machine that has nothing but what the test puts into tmp_path."""

    def find(torch_cuda="13.2", arch_flags=(), **environ):
        return cuda.find_toolkit(
            torch_cuda,
            arch_flags,
            environ={"PATH": "", **environ},
            system_home=tmp_path / "usr_local_cuda",
            site_packages=[tmp_path / "site", tmp_path / "overlay"],
        )

    return find


def test_order(tmp_path, find):
    homes = {
        "CUDA_HOME": make_toolkit(tmp_path / "chosen"),
        "PATH": make_toolkit(tmp_path / "on_path"),
        str(tmp_path / "usr_local_cuda"): make_toolkit(tmp_path / "usr_local_cuda"),
        "package index": make_toolkit(tmp_path / "site" / "nvidia" / "cu13", lib="lib"),
    }
    environ = {"CUDA_HOME": str(tmp_path / "chosen"), "PATH": str(tmp_path / "on_path" / "bin")}
    for origin, home in homes.items():
        found = find(**environ)
        assert isinstance(found, cuda.Toolkit)
        assert (found.origin, found.home, found.version) == (origin, home, "13.2")
        assert (found.library_dir / cuda.STATIC_RUNTIME).exists()
        (home / "bin" / "nvcc").unlink()
    assert isinstance(find(**environ), cuda.Missing)


def test_minor_versions_may_differ_and_majors_may_not(tmp_path, find):
    make_toolkit(tmp_path / "old", "12.8")
    make_toolkit(tmp_path / "usr_local_cuda", "13.0")
    found = find(CUDA_HOME=str(tmp_path / "old"))
    assert isinstance(found, cuda.Toolkit)
    assert found.version == "13.0"
    missing = find("12.6", CUDA_HOME=str(tmp_path / "usr_local_cuda"))
    assert isinstance(missing, cuda.Missing)
    assert "nvcc is of CUDA 13.0, torch is built with CUDA 12.6" in missing.reason
    assert missing.cure == "install the CUDA 12.6 toolkit and set CUDA_HOME"


def test_packages_spread_over_two_folders(tmp_path, find):
    home = make_toolkit(tmp_path / "site" / "nvidia" / "cu13", lib="lib")
    runtime = tmp_path / "overlay" / "nvidia" / "cu13"
    (home / "include").mkdir()
    (runtime / "include" / "cccl").mkdir(parents=True)
    (runtime / "lib").mkdir()
    (runtime / "lib" / cuda.STATIC_RUNTIME).touch()
    found = find()
    assert isinstance(found, cuda.Toolkit)
    assert found.home == home
    # torch's runtime comes first: that which the compiler's package brought may be newer.
    assert found.library_dir == runtime / "lib"
    assert found.include_dirs == (
        runtime / "include",
        runtime / "include" / "cccl",
        home / "include",
    )


def test_every_rejected_place_is_named(tmp_path, find):
    make_toolkit(tmp_path / "usr_local_cuda", body=FAILS)
    (tmp_path / "empty").mkdir()
    missing = find(CUDA_HOME=str(tmp_path / "empty"))
    assert isinstance(missing, cuda.Missing)
    assert f"CUDA_HOME: {tmp_path}/empty/bin/nvcc does not exist" in missing.reason
    assert "nvcc 13.2 does not compile: smoke.cu: error: unsupported GNU version!" in missing.reason
    assert "\n" not in missing.reason
    assert 'pip install "nvidia-cuda-nvcc==13.2.*"' in missing.cure
    assert "CUDA_HOME" in missing.cure


def test_architectures_are_tried(tmp_path, find):
    home = make_toolkit(tmp_path / "usr_local_cuda")
    assert isinstance(find(arch_flags=["-gencode=arch=compute_90,code=sm_90"]), cuda.Toolkit)
    assert "-gencode=arch=compute_90,code=sm_90" in (home / "calls").read_text()


def test_without_the_static_runtime(tmp_path, find):
    home = make_toolkit(tmp_path / "usr_local_cuda")
    (home / "lib64" / cuda.STATIC_RUNTIME).unlink()
    missing = find()
    assert isinstance(missing, cuda.Missing)
    assert f"{cuda.STATIC_RUNTIME} is not under {home}" in missing.reason


def test_nvcc_on_path_may_be_a_link(tmp_path, find):
    home = make_toolkit(tmp_path / "cuda-13.2")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(home / "bin" / "nvcc")
    found = find(PATH=str(tmp_path / "bin"))
    assert isinstance(found, cuda.Toolkit)
    assert found.home == home


def test_nvcc_on_path_may_be_a_script(tmp_path, find):
    home = make_toolkit(tmp_path / "cuda-13.2")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "nvcc"
    script.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    found = find(PATH=str(tmp_path / "bin"))
    assert isinstance(found, cuda.Toolkit)
    assert found.home == home


def test_an_nvcc_that_does_not_start(tmp_path, find):
    home = make_toolkit(tmp_path / "usr_local_cuda")
    (home / "bin" / "nvcc").write_text("#!/nowhere/sh\n")
    missing = find()
    assert isinstance(missing, cuda.Missing)
    assert "names no release" in missing.reason


def test_nothing_found(find):
    missing = find()
    assert isinstance(missing, cuda.Missing)
    assert missing.reason == "no nvcc was found"


def test_torch_without_cuda(find):
    missing = find(None)
    assert isinstance(missing, cuda.Missing)
    assert missing.reason == "torch is built without CUDA"


@pytest.mark.parametrize("torch_cuda", [None, "12.8"])
def test_no_packages_where_they_do_not_help(torch_cuda):
    assert cuda.packages_to_install(torch_cuda) == []


def test_packages_are_of_torch_s_version(monkeypatch):
    monkeypatch.setattr(cuda, "sources", lambda: ["csrc/cuda/op.cu"])
    monkeypatch.setattr(cuda, "find_toolkit", lambda version: cuda.Missing("", ""))
    packages = cuda.packages_to_install("13.2")
    assert "nvidia-cuda-nvcc==13.2.*" in packages
    assert "nvidia-nvvm==13.2.*" in packages
    assert "nvidia-cuda-crt==13.2.*" in packages


def test_switch():
    assert [cuda.parse_switch(v) for v in (None, "", "auto", "0", "1")] == [
        *["auto"] * 3,
        "0",
        "1",
    ]
    with pytest.raises(ValueError, match="GANKERNELS_CUDA: expected auto, 0 or 1, got 'yes'"):
        cuda.parse_switch("yes")
