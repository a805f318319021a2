"""The stand-in itself, through the official client: what it lets pass must pass a real API server too."""

from __future__ import annotations

import json
import threading
from typing import Any

import kubernetes
import pytest
from kubernetes.client.exceptions import ApiException

from tests.kubernetes.definitions import GATES
from tests.kubernetes.faults import Trouble
from tests.kubernetes.server import ApiServer
from tests.kubernetes.structural import RULES_RUN

pytestmark = pytest.mark.integration

WHERE = ("tests.dev", "v1", "default", "gates")


class Client:
    """The official client's three calls that these tests are about."""

    def __init__(self, api: ApiServer, token: str = "admin") -> None:
        configuration = kubernetes.client.Configuration(host=api.url)
        configuration.api_key = {"authorization": f"Bearer {token}"}
        configuration.retries = False
        self.api = kubernetes.client.ApiClient(configuration)
        self.objects = kubernetes.client.CustomObjectsApi(self.api)
        self.core = kubernetes.client.CoreV1Api(self.api)

    def create(self, name: str = "north", **spec: Any) -> dict[str, Any]:
        body = {
            "apiVersion": "tests.dev/v1",
            "kind": "Gate",
            "metadata": {"name": name},
            "spec": {"width": 3, **spec},
        }
        return self.objects.create_namespaced_custom_object(*WHERE, body)

    def get(self, name: str = "north") -> dict[str, Any]:
        return self.objects.get_namespaced_custom_object(*WHERE, name)

    def merge(self, patch: dict[str, Any], name: str = "north", *, status: bool = False) -> dict[str, Any]:
        call = "patch_namespaced_custom_object_status" if status else "patch_namespaced_custom_object"
        return getattr(self.objects, call)(*WHERE, name, patch, _content_type="application/merge-patch+json")

    def apply(self, spec: dict[str, Any], manager: str, *, force: bool = False) -> dict[str, Any]:
        body = {"apiVersion": "tests.dev/v1", "kind": "Gate", "metadata": {"name": "north"}, "spec": spec}
        return self.objects.patch_namespaced_custom_object(
            *WHERE, "north", body, field_manager=manager, force=force, _content_type="application/apply-patch+yaml"
        )


@pytest.fixture
def client(api: ApiServer) -> Client:
    api.cluster.create("customresourcedefinitions", None, GATES)
    return Client(api)


def refused(call: Any) -> ApiException:
    with pytest.raises(ApiException) as caught:
        call()
    caught.value.said = json.loads(caught.value.body)["message"]
    return caught.value


def test_generations_count_specs_and_status_is_written_apart(client: Client) -> None:
    made = client.create()
    assert (made["metadata"]["generation"], made["spec"]["least"]) == (1, 2), "defaults are filled in"
    marked = client.merge({"metadata": {"annotations": {"a": "b"}}, "status": {"open": True}})
    assert marked["metadata"]["generation"] == 1
    assert "status" not in marked
    assert client.merge({"spec": {"width": 9}, "status": {"open": True}}, status=True)["spec"]["width"] == 3
    assert client.merge({"spec": {"width": 4}})["metadata"]["generation"] == 2
    assert client.get()["status"] == {"open": True}


def test_a_write_that_changes_nothing_is_none(client: Client) -> None:
    before = client.create()["metadata"]["resourceVersion"]
    assert client.merge({"spec": {"width": 3}})["metadata"]["resourceVersion"] == before


def test_a_stale_write_is_a_conflict(client: Client) -> None:
    made = client.create()
    client.merge({"spec": {"width": 4}})
    error = refused(lambda: client.objects.replace_namespaced_custom_object(*WHERE, "north", made))
    assert error.status == 409


def test_finalizers_hold_an_object_until_the_last_is_gone(client: Client) -> None:
    client.create()
    client.merge({"metadata": {"finalizers": ["tests.dev/drain"]}})
    client.objects.delete_namespaced_custom_object(*WHERE, "north")
    held = client.get()
    assert held["metadata"]["deletionTimestamp"]
    assert refused(lambda: client.merge({"metadata": {"finalizers": ["tests.dev/drain", "x.dev/y"]}})).status == 422
    client.merge({"metadata": {"finalizers": []}})
    assert refused(client.get).status == 404


def test_what_has_lost_its_owner_is_collected(api: ApiServer, client: Client) -> None:
    owner = client.create()
    reference = {"apiVersion": "tests.dev/v1", "kind": "Gate", "name": "north", "uid": owner["metadata"]["uid"]}
    api.cluster.create("secrets", "default", {"metadata": {"name": "key", "ownerReferences": [reference]}})
    client.objects.delete_namespaced_custom_object(*WHERE, "north")
    assert api.cluster.find("secrets", "default", "key") is None


def test_apply_takes_gives_up_and_fights_over_fields(client: Client) -> None:
    client.apply({"width": 3, "locks": [{"name": "a", "depth": 1}]}, "one")
    both = client.apply({"width": 3, "locks": [{"name": "b"}]}, "two")
    assert [lock["name"] for lock in both["spec"]["locks"]] == ["a", "b"], "lists with keys are merged"
    error = refused(lambda: client.apply({"width": 5}, "two"))
    assert error.status == 409
    assert ".spec.width" in error.said
    assert 'conflict with "one"' in error.said
    taken = client.apply({"width": 5}, "two", force=True)
    assert (taken["spec"]["width"], [lock["name"] for lock in taken["spec"]["locks"]]) == (5, ["a"])
    assert "locks" not in client.apply({"width": 5}, "one")["spec"], "what a manager leaves out is taken away"


def test_a_bad_object_is_refused_with_the_field(client: Client) -> None:
    error = refused(lambda: client.create(width="wide"))
    assert error.status == 422
    assert "spec.width" in error.said
    body = {"apiVersion": "tests.dev/v1", "kind": "Gate", "metadata": {"name": "x"}, "spec": {"width": 3, "hue": 1}}
    strict = refused(lambda: client.objects.create_namespaced_custom_object(*WHERE, body, field_validation="Strict"))
    assert (strict.status, 'unknown field "spec.hue"' in strict.said) == (400, True)
    assert "hue" not in client.objects.create_namespaced_custom_object(*WHERE, body)["spec"], "otherwise it is pruned"


@pytest.mark.skipif(not RULES_RUN, reason="cel-expr-python is not installed")
def test_rules_are_evaluated(client: Client) -> None:
    error = refused(lambda: client.create(width=1))
    assert "width 1 is less" in error.said


def test_an_unstructural_definition_is_refused(client: Client) -> None:
    bad = {**GATES, "metadata": {"name": "bad"}}
    extensions = kubernetes.client.ApiextensionsV1Api(client.api)
    for schema in ({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}}, {"$ref": "x"}):
        version = {**GATES["spec"]["versions"][0], "schema": {"openAPIV3Schema": schema}}
        body = {**bad, "spec": {**GATES["spec"], "versions": [version]}}
        with pytest.raises(ApiException, match="422"):
            extensions.create_custom_resource_definition(body)


def test_lists_come_in_pages_that_expire(api: ApiServer, client: Client) -> None:
    for index in range(5):
        client.create(f"gate-{index}")
    first = client.objects.list_namespaced_custom_object(*WHERE, limit=2)
    assert (len(first["items"]), first["metadata"]["remainingItemCount"]) == (2, 3)
    client.create("gate-9")
    rest = client.objects.list_namespaced_custom_object(*WHERE, limit=9, _continue=first["metadata"]["continue"])
    assert [i["metadata"]["name"] for i in rest["items"]] == ["gate-2", "gate-3", "gate-4"], "pages are of one moment"
    again = client.objects.list_namespaced_custom_object(*WHERE, limit=2)
    api.forget_continuations()
    call = lambda: client.objects.list_namespaced_custom_object(*WHERE, _continue=again["metadata"]["continue"])  # noqa: E731
    assert refused(call).status == 410


def watched(client: Client, seen: list[tuple[str, str]], **query: Any) -> None:
    watch = kubernetes.watch.Watch()
    for event in watch.stream(client.objects.list_namespaced_custom_object, *WHERE, timeout_seconds=1, **query):
        seen.append((event["type"], event["object"]["metadata"].get("name", "")))  # noqa: PERF401 - the watch is cut


def test_a_watch_tells_what_happened_since_a_version(client: Client) -> None:
    since = client.create()["metadata"]["resourceVersion"]
    client.merge({"metadata": {"labels": {"side": "left"}}})
    client.create("south")
    client.merge({"metadata": {"labels": {"side": "right"}}})
    client.objects.delete_namespaced_custom_object(*WHERE, "south")
    seen: list[tuple[str, str]] = []
    thread = threading.Thread(target=watched, args=(client, seen), kwargs={"resource_version": since})
    thread.start()
    left: list[tuple[str, str]] = []
    watched(client, left, resource_version=since, label_selector="side=left")
    thread.join()
    assert seen == [("MODIFIED", "north"), ("ADDED", "south"), ("MODIFIED", "north"), ("DELETED", "south")]
    assert left == [("ADDED", "north"), ("DELETED", "north")], "what leaves the selection is deleted to the watch"


def test_a_watch_from_too_long_ago_is_told_so(api: ApiServer, client: Client) -> None:
    client.create()
    api.cluster.forget_history()
    with pytest.raises(ApiException) as caught:
        watched(client, [], resource_version="100")
    assert caught.value.status == 410


@pytest.mark.parametrize(
    ("trouble", "done"),
    [(Trouble.INTERNAL, False), (Trouble.TOO_MANY, False), (Trouble.CUT, False), (Trouble.LOST_ANSWER, True)],
)
def test_faults_strike_before_or_after_the_work(api: ApiServer, client: Client, trouble: Trouble, done: bool) -> None:
    api.faults.plan(trouble, lambda asked: asked.verb == "create")
    with pytest.raises(Exception, match=r"500|429|[Aa]borted|[Cc]onnection"):
        client.create()
    assert (api.cluster.find("gates", "default", "north") is not None) == done


def test_the_server_goes_away_and_comes_back(api: ApiServer, client: Client) -> None:
    client.create()
    with api.away(), pytest.raises(Exception, match="refused"):
        client.get()
    assert client.get()["spec"]["width"] == 3


def test_a_service_account_may_do_what_its_role_says(api: ApiServer, client: Client) -> None:
    role = {
        "kind": "Role",
        "metadata": {"name": "r", "namespace": "default"},
        "rules": [{"apiGroups": ["tests.dev"], "resources": ["gates"], "verbs": ["get", "patch"]}],
    }
    binding = {
        "kind": "RoleBinding",
        "metadata": {"name": "b", "namespace": "default"},
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "bot", "namespace": "default"}],
    }
    api.grant([role, binding])
    client.create()
    bot = Client(api, "system:serviceaccount:default:bot")
    assert bot.get()["spec"]["width"] == 3
    assert bot.merge({"spec": {"width": 4}})["spec"]["width"] == 4
    error = refused(lambda: bot.merge({"status": {"open": True}}, status=True))
    assert error.status == 403
    assert 'cannot patch resource "gates/status"' in error.said
    assert refused(lambda: bot.core.list_namespaced_secret("default")).status == 403
