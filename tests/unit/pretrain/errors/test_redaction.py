"""Secrets, by key, by look and from the environment; and what only looks like one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.compose import PRETRAIN
from pretrain.errors import ConfigError, check
from pretrain.errors.redaction import looks_secret, redacted
from pretrain.registry import choices, flattened, plain

HEX = "0123456789abcdef"


def test_redaction_takes_secrets_and_nothing_else():
    config = {
        "tracker": {"project": "p", "api_key": "abc", "WANDB_API_KEY": "abc"},
        "data": {
            "tokenizer": "bpe",
            "num_tokens": 5,
            "eos_token": "<|endoftext|>",
            "hub": [{"hf_token": "x", "url": "https://me:pass@host/data"}, "hf_" + "a1B2" * 8],
            "password": "",
            "revision": "0123456789abcdef0123456789abcdef01234567",
        },
        "keys": ["left alone"],
        "secret": ["one", "two", 3],
    }
    assert redacted(config) == {
        "tracker": {"project": "p", "api_key": "<redacted>", "WANDB_API_KEY": "<redacted>"},
        "data": {
            "tokenizer": "bpe",
            "num_tokens": 5,
            "eos_token": "<|endoftext|>",
            "hub": [{"hf_token": "<redacted>", "url": "https://<redacted>@host/data"}, "<redacted>"],
            "password": "",
            "revision": "0123456789abcdef0123456789abcdef01234567",
        },
        "keys": ["left alone"],
        "secret": ["<redacted>", "<redacted>", "<redacted>"],
    }


SECRET_KEYS = """
token secret password passwd pwd passphrase credential credentials auth sas apikey apiKey api_key x.api-key
aws_secret_access_key AWS_SECRET_ACCESS_KEY AWSAccessKeyId access_key_id account_key private_key signing_key
connection_string connectionString client_secret clientSecret hf_token HF_TOKEN X-Amz-Signature Authorization
"""
OTHER_KEYS = """
key tokenizer num_tokens special_tokens max_tokens tokens eos_token pad_token mask_token special_token sort_key
primary_key keys keyboard author authors secretary oauthors passwords_file column_key public_key design signal
"""


@pytest.mark.parametrize("key", SECRET_KEYS.split())
def test_keys_of_secrets(key):
    assert redacted({key: "abc"}) == {key: "<redacted>"} and looks_secret("abc", key)
    assert "abc" not in redacted(f"before {key}=abc after") and "abc" not in redacted(f'{{"{key}": "abc"}}')


@pytest.mark.parametrize("key", OTHER_KEYS.split())
def test_keys_of_other_things(key):
    assert redacted({key: "abc"}) == {key: "abc"} and redacted(f"{key}=abc") == f"{key}=abc"


def test_no_setting_of_ours_is_taken_for_a_secret():
    PRETRAIN.register()
    keys = {f"{group}.{key}" for kind, (group, _) in choices().items() for key in flattened(plain(kind)) if key}
    names = [key for kind in choices() for key in kind.__dataclass_fields__]
    assert not [name for name in [*keys, *names] if redacted("value", name) != "value"]


SECRET_TEXTS = [
    ("https://me:S3CRET@host/x", "https://<redacted>@host/x"),
    ("https://me:S3C/RE@T@host:80/x", "https://<redacted>@host:80/x"),
    ("https://m%40e:S3C%2FRET@host", "https://<redacted>@host"),
    ("https://S3CRET@host/x", "https://<redacted>@host/x"),
    ("s3://b/o?X-Amz-Credential=S3CRET&X-Amz-Signature=S3CRET&n=1", None),
    ("https://a.blob/o?sv=1&sig=S3CRET%3D&se=2", "https://a.blob/o?sv=1&sig=<redacted>&se=2"),
    ("https://h/?access_token=S3CRET#x", None),
    ("https://h/?key=S3CRET&n=1", "https://h/?key=<redacted>&n=1"),
    ("https://h/?AWSAccessKeyId=S3CRET&Signature=S3CRET", None),
    ("AccountName=a;AccountKey=S3CRET==;EndpointSuffix=b", "AccountName=a;AccountKey=<redacted>;EndpointSuffix=b"),
    ("Authorization: Bearer S3CRETS3CRET", "Authorization: <redacted>"),
    ("{'Authorization': 'Basic S3CRET'}", None),
    ("-----BEGIN RSA PRIVATE KEY-----\nS3CRET\n-----END RSA PRIVATE KEY-----", "<redacted>"),
    ("-----BEGIN PRIVATE KEY-----\nS3CRET", "<redacted>"),
    ("eyJhbGciOiJI.eyJzdWIiOiIx.S3CRET", "<redacted>"),
    ("xoxb-1234567890-S3CRET", "<redacted>"),
    ("sk-proj-Ab12Ab12Ab12Ab12S3CRET", "<redacted>"),
    ("sk-ant-api03-Ab12Ab12Ab12Ab12-S3CRET", "<redacted>"),
    ("AIzaSyA123456789012345678901234S3CRET", "<redacted>"),
    ("AKIAABCDEFGHIJS3CRET", "<redacted>"),
    ("ghp_abcdefghijklmnopqS3CRET", "<redacted>"),
    ("tracker.api_key='S3CRET x': no such setting", "tracker.api_key=<redacted>: no such setting"),
]


@pytest.mark.parametrize(("text", "left"), SECRET_TEXTS)
def test_texts_with_secrets(text, left):
    assert "S3CRET" not in redacted(text) and redacted(text) == (left or redacted(text))
    assert looks_secret(text) and "S3CRET" not in redacted(f"in the middle {text} of a line")


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b",
        "hf://datasets/org/name@main/x.parquet",
        "s3://bucket/a@b.txt",
        "org/name@" + HEX * 2,
        "sk-learn-baseline-experiment-long-name",
        "the token: [MASK]",
        "eos_token=</s>",
        "tokenizer.mask=<mask>: no token",
        "12:30:00 user@host",
        "password=${oc.env:PASSWORD}",
        "time=1-00:00:00",
    ],
)
def test_texts_without(text):
    assert redacted(text) == text and not looks_secret(text)


def test_values_of_secret_variables_are_known_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "correct horse")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert redacted({"note": "a correct horse!"}) == {"note": "a <redacted>!"}
    assert redacted("/home") == "/home", "PWD is a directory"


@pytest.mark.parametrize("said", ["p%40ssword-9", "p@ssword-9", "me:p%40ssword-9@proxy", "http://me:p@ssword-9@proxy/"])
@pytest.mark.parametrize(
    ("key", "scheme"), [("HTTPS_PROXY", "http://"), ("https_proxy", ""), ("DATABASE_URL", "db://")]
)
def test_passwords_in_addresses_of_the_environment_are_known_wherever_they_stand(monkeypatch, key, scheme, said):
    monkeypatch.setenv(key, f"{scheme}me:p%40ssword-9@proxy:3128")
    assert "ssword" not in redacted(f"cannot connect: {said} was refused")


def test_names_in_the_environment_that_look_like_addresses_are_no_secrets(monkeypatch):
    monkeypatch.setenv("IMAGE", "headwater:2026.12.01@sha256:0123")
    assert redacted("headwater 2026.12.01") == "headwater 2026.12.01"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9), st.lists, max_leaves=9))
def test_plain_values_keep_their_shape(value):
    assert redacted(redacted(value)) == redacted(value)


def test_errors_repeat_no_secret():
    assert (
        str(ConfigError("paths=['https://me:S3CRET@host/a b']: no file"))
        == "paths=['https://<redacted>@host/a b']: no file"
    )
    with pytest.raises(ConfigError, match=r"^tracker\.api_key=<redacted>: too short$"):
        check(False, "tracker.api_key", "a b, c", "too short")
