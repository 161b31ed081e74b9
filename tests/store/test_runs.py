"""Names of runs: which are valid, how runs are listed, and the answer for a run that does not exist."""

import pytest

from kdjax.errors import UserError
from kdjax.store import Store


def begin(store, name):
    store.run(name).begin({"config": {}})


MALFORMED = ["", "/a", "a/", "a//b", "..", "a/../b", ".hidden", "a/.b", "a b", "a\n", "ä", "a\\b", "~"]


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_names_are_refused(tmp_path, name):
    for look_up in (Store(tmp_path).run, Store(tmp_path).find):
        with pytest.raises(UserError, match="is not a valid name of a run"):
            look_up(name)


@pytest.mark.parametrize("root", ["gs://bucket/runs", "s3://bucket", "memory://runs"])
def test_a_url_is_not_taken_for_a_folder_of_this_host(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"the store '{root}' is a URL.*mount the bucket"):
        Store(root)
    assert not list(tmp_path.iterdir())


def test_a_name_longer_than_that_of_a_folder_is_refused(tmp_path):
    Store(tmp_path).run("a" * 240)
    with pytest.raises(UserError, match="a part of 241 characters, aaaaaaaaaaaaaaaaaaaa"):
        Store(tmp_path).run("b/" + "a" * 241)


def test_runs_nest_by_folders_and_are_listed_by_name(tmp_path):
    store = Store(tmp_path / "runs")
    assert store.runs() == []
    for name in ("digits/mlp-mse-s0", "digits/deep/er", "gamma=0.1+kd_x"):
        begin(store, name)
    (tmp_path / "runs" / "no-run").mkdir()
    assert store.runs() == ["digits/deep/er", "digits/mlp-mse-s0", "gamma=0.1+kd_x"]
    assert store.find("digits/deep/er").path == tmp_path / "runs" / "digits" / "deep" / "er"


def test_a_run_is_not_inside_a_run_and_contains_none(tmp_path):
    store = Store(tmp_path)
    begin(store, "a/b")
    with pytest.raises(UserError, match="inside the run 'a/b'"):
        store.run("a/b/c/d")
    with pytest.raises(UserError, match="contain the run 'a/b'"):
        store.run("a")
    store.run("a/c")
    store.run("a/b")


def test_a_missing_run_is_answered_with_the_nearest_name(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(UserError, match="has no runs yet"):
        store.find("digits/mlp-mse-s0")
    begin(store, "digits/mlp-mse-s0")
    with pytest.raises(UserError, match="Did you mean 'digits/mlp-mse-s0'"):
        store.find("digits/mlp-mse-s1")
    for seed in range(30):
        begin(store, f"digits/student-{seed}")
    with pytest.raises(UserError, match="It has 31 runs"):
        store.find("zzz")
