"""What names an image, and which a pattern allows: hostile text matches nothing that it isn't."""

from __future__ import annotations

import re

import pytest
from gpuspawner.core.errors import ConfigError
from gpuspawner.core.image_reference import (
    AllowedImages,
    Reference,
    allow_images,
    parse_pattern,
    parse_reference,
)
from hypothesis import given
from hypothesis import strategies as st

SHA = "sha256:" + "0a" * 32
TAG = "a tag has only letters, digits, '_', '.' and '-', and at most 128 characters"
DIGEST = "a digest is written like sha256: and 64 hexadecimal digits"
PATTERN = "quay.io/jupyter/*:2026-*"


@pytest.mark.parametrize(
    ("text", "reference", "written"),
    [
        ("lab", Reference("docker.io", "library/lab"), "docker.io/library/lab:latest"),
        ("me/lab:1", Reference("docker.io", "me/lab", "1"), "docker.io/me/lab:1"),
        ("docker.io/lab:1", Reference("docker.io", "library/lab", "1"), "docker.io/library/lab:1"),
        ("index.docker.io/me/lab:1", Reference("docker.io", "me/lab", "1"), "docker.io/me/lab:1"),
        ("localhost/lab:1", Reference("localhost", "lab", "1"), "localhost/lab:1"),
        ("127.0.0.1:5000/a/b:1", Reference("127.0.0.1:5000", "a/b", "1"), "127.0.0.1:5000/a/b:1"),
        ("[::1]:5000/lab:1", Reference("[::1]:5000", "lab", "1"), "[::1]:5000/lab:1"),
        ("nvcr.io/nvidia/pytorch@" + SHA, Reference("nvcr.io", "nvidia/pytorch", None, SHA),
         f"nvcr.io/nvidia/pytorch@{SHA}"),
        # What Docker would take for the id of any image that is here is a name, with its host before it.
        ("d70525e614aa", Reference("docker.io", "library/d70525e614aa"),
         "docker.io/library/d70525e614aa:latest"),
        (SHA, Reference("docker.io", "library/sha256", "0a" * 32), f"docker.io/library/{SHA}"),
    ],
)  # fmt: skip
def test_names_of_images(text: str, reference: Reference, written: str) -> None:
    assert (parse_reference(text), str(parse_reference(text))) == (reference, written)
    assert str(parse_reference(written)) == written


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(
            (text, "it is not the name of an image")
            for text in (
                "", " ", "lab ", " lab", "lab\n", "a b", "lab\nb", "-lab", "lab/", "/lab", "a//b",
                "quay.io/../lab", "quay.io/./lab", "quay.io/a..b", "quay.io/a/%2e%2e/b", "http://quay.io/lab",
                "quay.io:/lab",
                "quay.io:99999999/lab", "quay.io\\evil/lab", "quаy.io/lab", "quay.io/lаb",
                "quay。io/lab", "quay.io/ｌab", "a\0b", "lab?x", "lab#x", "x" * 521, None, 7, ["lab"],
            )
        ),
        ("x" * 300, "its name is too long"),
        ("QUAY.io/lab:1", "write QUAY.io in lower case"),
        ("Lab/x:1", "write Lab in lower case"),
        ("lab:", TAG),
        ("lab:1\n", TAG),
        ("lab:-1", TAG),
        ("lab:1:2", TAG),
        ("lab:" + "1" * 129, TAG),
        ("lab:１", TAG),
        ("lab:1\nb", TAG),
        ("user@quay.io/lab", DIGEST),
        ("lab@", DIGEST),
        ("lab@sha256:abc", DIGEST),
        (f"lab@{SHA}\n", DIGEST),
        (f"lab@{SHA}@{SHA}", DIGEST),
        (f"lab:1@{SHA}", "leave out the tag or the digest: Docker ignores the tag if there is a digest"),
    ],
)  # fmt: skip
def test_what_is_no_name(text: object, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        parse_reference(text)


@given(st.text() | st.from_regex(r"\A[a-zA-Z0-9./:@_ \[\]-]{0,40}\Z"))
def test_whatever_comes_is_a_name_in_full_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ValueError:
        return
    assert parse_reference(str(reference)) == Reference(
        reference.host,
        reference.path,
        reference.tag or (None if reference.digest else "latest"),
        reference.digest,
    )
    assert str(reference).isascii()
    assert str(reference).isprintable()


@pytest.mark.parametrize(
    ("pattern", "image", "matches"),
    [
        (PATTERN, "quay.io/jupyter/scipy-notebook:2026-11-02", True),
        (PATTERN, "quay.io/jupyter/scipy-notebook:2025-11-02", False),
        (PATTERN, "quay.io/jupyter/scipy-notebook", False),
        (PATTERN, "quay.io/jupyter/a/b:2026-1", False),
        (PATTERN, "quay.io/jupyter:2026-1", False),
        (PATTERN, "quay.io/jupyterevil/a:2026-1", False),
        (PATTERN, "quay.io.evil.org/jupyter/a:2026-1", False),
        (PATTERN, "evil.org/quay.io/jupyter/a:2026-1", False),
        (PATTERN, "quay.io:443/jupyter/a:2026-1", False),
        (PATTERN, "jupyter/a:2026-1", False),
        (PATTERN, f"quay.io/jupyter/a@{SHA}", False),
        ("quay.io/jupyter/*:*", "quay.io/jupyter/a:latest", True),
        ("quay.io/jupyter/*:*", "quay.io/jupyter/a", False),
        ("nvcr.io/nvidia/*@sha256:*", f"nvcr.io/nvidia/pytorch@{SHA}", True),
        ("nvcr.io/nvidia/*@sha256:*", f"nvcr.io/nvidia/pytorch@sha512:{'0' * 128}", False),
        ("nvcr.io/nvidia/*@sha256:*", "nvcr.io/nvidia/pytorch:1", False),
        ("me/*:1", "docker.io/me/lab:1", True),
        ("127.0.0.1:5000/*:1", "127.0.0.1:5000/lab:1", True),
        ("127.0.0.1:5000/*:1", "127.0.0.1:5001/lab:1", False),
        ("a.b/x.y:*", "a.b/xzy:1", False),
    ],
)
def test_what_a_pattern_allows(pattern: str, image: str, matches: bool) -> None:
    assert parse_pattern(pattern).matches(parse_reference(image)) == matches


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("*.io/jupyter/a:1", "write the registry out"),
        ("Quay.io/jupyter/*:1", "write the registry out"),
        ("quay.io/jupyter/*", 'say which tags ("quay.io/jupyter/*:2026-*"'),
        ("quay.io/*:1@sha256:*", "leave out the tag or the digest"),
        ("quay.io/ *:1", "is not a valid image pattern"),
        ("quay.io/Jupyter/*", "is not a valid image pattern"),  # with a tag it would be refused as well
        ("quay.io/ *", "is not a valid image pattern"),
        ("quay.io/*:1 2", "is not a valid image pattern"),
        ("quay.io/*@sha256:x*", "is not a valid image pattern"),
    ],
)
def test_a_pattern_that_says_too_little_is_refused_at_load(pattern: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        allow_images([pattern])
    assert sentence in str(error.value)
    for suggested in re.findall('"([^"]+)"', str(error.value)):
        allow_images([suggested])  # it is not refused in its turn


def test_the_setting() -> None:
    assert [allow_images(empty) for empty in (None, {}, [])] == [AllowedImages()] * 3
    assert not AllowedImages()
    assert allow_images("*") == AllowedImages(any=True)
    assert allow_images({"a": "lab:1", "b": PATTERN}) == AllowedImages(
        {"a": "lab:1"}, (parse_pattern(PATTERN),)
    )
    assert allow_images(["lab:1"]) == AllowedImages({"lab:1": "lab:1"})
    for wrong in ("lab:1", {"a": 1}, 7, [""], {"a": ["lab:1"]}):
        with pytest.raises(ConfigError, match="give a list of images"):
            allow_images(wrong)


def test_a_long_offer_is_cut() -> None:
    names = [f"lab:{number}" for number in range(20)]
    assert allow_images(names).offer() == f"{', '.join(names[:8])} or another one from the list"
