import re
from typing import Any

import pytest
import yaml

from regops.gateways import envoy, haproxy
from regops.gateways.backends import Backends

TWO = Backends.of_words(["2=c:3", "1=a:1,[::1]:2"])


def agent(name: str, scope: str, datacentre: str = "east", opa: str | None = None) -> dict[str, Any]:
    return {"id": name, "scope": scope, "datacentre": datacentre, "opa": opa or f"http://{name}:8181"}


def test_the_first_of_a_shard_answers_and_the_others_stand_in() -> None:
    assert TWO.shards == [["a:1", "[::1]:2"], ["c:3"]]
    text = haproxy.configuration(TWO, "0.0.0.0:80")
    assert re.findall(r"^    server shard_1-\S+ (.*)$", text, re.MULTILINE) == ["a:1", "[::1]:2 backup"]
    clusters = yaml.safe_load(envoy.configuration(TWO, "0.0.0.0:80"))["static_resources"]["clusters"]
    assert [level["priority"] for level in clusters[0]["load_assignment"]["endpoints"]] == [0, 1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "shards are counted from 1"),
        (["0=a:1"], "shards are counted from 1"),
        (["1001=a:1"], "shards are counted from 1"),
        (["1=a:1", "3=c:3"], "shard 2 of 3 has no OPA"),
        (["1="], "'' is no host:port"),
        (["1=a"], "'a' is no host:port"),
        (["1=a:0"], "'a:0' is no host:port"),
        (["1=a:1 backup"], "is no host:port"),
        (["x=a:1"], "write 1=host:port"),
        (["a:1"], "write 1=host:port"),
    ],
)
def test_what_is_no_set_of_shards_is_named(words: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Backends.of_words(words)


def test_a_fleet_tells_its_shards_those_of_the_datacentre_first() -> None:
    fleet = [
        agent("b1", "shard:1/2", "west"),
        agent("a1", "shard:1/2"),
        agent("a2", "shard:2/2"),
        agent("whole", "all"),
        agent("side", "projects:a"),
    ]
    assert Backends.of_fleet(fleet, None, None).shards == [["a1:8181", "b1:8181"], ["a2:8181"]]
    assert Backends.of_fleet(fleet, None, "west").shards == [["b1:8181", "a1:8181"], ["a2:8181"]]


def test_while_the_number_of_shards_changes_one_is_chosen() -> None:
    fleet = [agent("old", "shard:1/1"), agent("new-1", "shard:1/2"), agent("new-2", "shard:2/2")]
    with pytest.raises(ValueError, match="agents of 1, 2 shards; choose by --of N"):
        Backends.of_fleet(fleet, None, None)
    assert Backends.of_fleet(fleet, 2, None).shards == [["new-1:8181"], ["new-2:8181"]]
    with pytest.raises(ValueError, match="shard 2 of 2 has no OPA"):
        Backends.of_fleet(fleet[:2], 2, None)
    with pytest.raises(ValueError, match="agents of no shards"):
        Backends.of_fleet([], None, None)


@pytest.mark.parametrize("opa", ["https://a:1", "a:1"])
def test_an_opa_that_no_configuration_can_name_is_said(opa: str) -> None:
    with pytest.raises(ValueError, match="only http://"):
        Backends.of_fleet([agent("a", "shard:1/1", opa=opa)], None, None)
