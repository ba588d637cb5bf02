"""Tests of create requests in the shapes of every generation."""

from __future__ import annotations

import uuid
from typing import Any

from twisted.internet.defer import Deferred

from sorna import errors
from sorna.manager.requests import CreateRequest, MountWish
from sorna.model.kernel import parse_kernel_id
from sorna.model.limits import KIB, MIB
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import OTHER, TOKEN, GatewayTestCase

BASIC = {"lang": "python3", "clientSessionToken": TOKEN}


class CreateTests(GatewayTestCase):
    def created(self, content: dict[str, Any], version: str = "v2") -> CreateRequest:
        """Create a kernel and give what the manager was asked."""
        answer = self.request("POST", f"/{version}/kernel/create", {**BASIC, **content})
        self.assertEqual(answer.status, 201, answer.body)
        (kernel,) = self.kernels.live.values()
        self.kernels.live.clear()
        return kernel.request

    def refused(self, content: Any) -> str:
        """Give the title of the refusal of a create request."""
        answer = self.request("POST", "/v3/kernel/create", content)
        self.assert_problem(answer, 400, "invalid-api-params")
        self.assertEqual(self.kernels.live, {})
        title: str = answer.json["title"]
        return title

    def test_get_or_create(self) -> None:
        """The same token finds the same kernel, with 201 either time."""
        first = self.request("POST", "/v2/kernel/create", BASIC)
        second = self.request("POST", "/v1/kernel/", {**BASIC, "lang": "python"})
        third = self.request("POST", "/v3/kernel", BASIC)
        (kernel_id,) = self.kernels.live
        for answer, created in ((first, True), (second, False), (third, False)):
            self.assertEqual(answer.status, 201)
            self.assertEqual(
                list(answer.json), ["kernelId", "sessionId", "sessionName", "created", "servicePorts", "status"]
            )
            self.assertEqual(parse_kernel_id(answer.json["kernelId"]), kernel_id)
            self.assertEqual((answer.json["created"], answer.json["status"]), (created, "RUNNING"))

    def test_waiting(self) -> None:
        """Clients say how long a kernel may wait for an agent, and whether they want to; most say nothing of it, or zero."""
        nothings: tuple[dict[str, Any], ...] = (
            {},
            {"maxWaitSeconds": 0, "enqueueOnly": False},
            {"maxWaitSeconds": None},
        )
        for nothing in nothings:
            self.assertEqual((self.created(nothing).wait, self.created(nothing).enqueue_only), (None, False))
        asked = self.created({"maxWaitSeconds": 12})
        self.assertEqual((asked.wait, asked.enqueue_only), (12.0, False))
        asked = self.created({"enqueueOnly": True})
        self.assertEqual((asked.wait, asked.enqueue_only), (3600.0, True))
        asked = self.created({"enqueueOnly": True, "maxWaitSeconds": 5})
        self.assertEqual((asked.wait, asked.enqueue_only), (5.0, True))
        for wrong, name in (
            ({"maxWaitSeconds": -1}, "maxWaitSeconds"),
            ({"maxWaitSeconds": "long"}, "maxWaitSeconds"),
            ({"maxWaitSeconds": 86_401}, "maxWaitSeconds"),
            ({"enqueueOnly": 1}, "enqueueOnly"),
        ):
            self.assertIn(name, self.refused({**BASIC, **wrong}))

    def test_queued(self) -> None:
        """The answer says where a kernel stands that waits."""
        self.kernels.turn = Deferred()
        answer = self.request("POST", "/v3/kernel", {**BASIC, "enqueueOnly": True, "maxWaitSeconds": 60})
        self.assertEqual((answer.status, answer.json["status"], answer.json["queuePosition"]), (201, "PENDING", 3))
        self.assertRegex(answer.json["queueDeadline"], r"\A\d{4}-\d\d-\d\dT")

    def test_labels(self) -> None:
        """Labels of the agent come under their own name and as a scaling group; nonsense is refused by name."""
        self.assertEqual(
            self.created({"config": {"labels": {"zone": "a", "x.org/disk": "ssd"}}}).labels,
            {"zone": "a", "x.org/disk": "ssd"},
        )
        self.assertEqual(self.created({"config": {"scalingGroup": "fast"}}).labels, {"scaling-group": "fast"})
        nothings: tuple[dict[str, Any], ...] = (
            {},
            {"labels": None},
            {"scalingGroup": None},
            {"scalingGroup": "default"},
            {"labels": {}},
        )
        for nothing in nothings:
            self.assertEqual(self.created({"config": nothing}).labels, {})
        for wrong, name in (
            ({"labels": []}, "config.labels"),
            ({"labels": {"zone": 1}}, "config.labels.zone"),
            ({"labels": {"zone": ""}}, "config.labels"),
            ({"labels": {"a b": "c"}}, "config.labels"),
            ({"labels": {f"k{number}": "v" for number in range(33)}}, "config.labels"),
            ({"scalingGroup": "a b"}, "config.scalingGroup"),
            ({"scalingGroup": 3}, "config.scalingGroup"),
        ):
            self.assertIn(name, self.refused({**BASIC, "config": wrong}))

    def test_another_owner_has_another_kernel(self) -> None:
        """A token is its owner's alone."""
        self.assertNotEqual(self.create(), self.create(keypair=OTHER))

    def test_shapes_of_each_generation(self) -> None:
        """Limits arrive in bytes, seconds and cores wherever and however a client spells them."""
        self.assertEqual(self.created({}), CreateRequest(EXAMPLE.access_key, TOKEN, "python3"))
        first = self.created({"resourceLimits": {"maxMem": 51240, "timeout": 5000}}, "v1")
        self.assertEqual((first.memory, first.execution_timeout), (51240 * KIB, 5.0))
        second = self.created({"limits": {"maxMem": 1, "execTimeout": 10}, "mounts": []})
        self.assertEqual((second.memory, second.execution_timeout), (KIB, 0.01))
        none = self.created({"limits": {"maxMem": 0, "execTimeout": 0}, "mounts": []})
        self.assertEqual((none.memory, none.execution_timeout), (0, 0))
        config: dict[str, Any] = {
            "mounts": None,
            "environ": {"A": "1", "_b": ""},
            "envs": 7,
            "clusterSize": 1,
            "instanceMemory": "512",
            "instanceCores": "1",
            "instanceGPUs": None,
            "unknown": [],
        }
        third = self.created({"config": config, "limits": {"maxMem": 5}, "tag": "x"}, "v3")
        self.assertEqual((third.memory, third.cpu_cores, third.tag), (512 * MIB, 1.0, "x"))
        self.assertEqual(third.environ, {"A": "1", "_b": ""})
        nulls = {
            "config": {"environ": None, "instanceMemory": None, "instanceCores": None},
            "tag": None,
            "limits": None,
        }
        self.assertEqual(self.created(nulls), CreateRequest(EXAMPLE.access_key, TOKEN, "python3"))

    def test_devices(self) -> None:
        """Devices are asked for by several names; none and nothing are the same."""
        for config, expected in (
            ({"instanceGPUs": "2"}, 2),
            ({"instanceGPUs": None, "instanceTPUs": 0}, 0),
            ({"resources": {"cuda.device": "1", "tpu.device": "0", "mem": "1g"}}, 1),
            ({"resources": {"cuda.device": 0, "cuda.shares": 3.0}}, 3),
            ({"resources": {"gpu": 64}, "instanceGPUs": 1}, 64),
            ({"resources": {}, "clusterSize": None}, 0),
        ):
            self.assertEqual(self.created({"config": config}, "v4").gpus, expected)

    def test_later_generations(self) -> None:
        """Clients from 18.12 on name sessions and runtimes differently, and count memory in units of their own."""
        slots = {"mounts": [], "clusterSize": 1, "instanceMemory": 1.5, "instanceCores": "1", "instanceTPUs": None}
        gibibytes = self.created({"tag": None, "config": slots}, "v4")
        self.assertEqual((gibibytes.memory, gibibytes.cpu_cores), (1536 * MIB, 1.0))
        for size, expected in (
            ("1g", 1024 * MIB),
            ("512MiB", 512 * MIB),
            ("0.5 G", 512 * MIB),
            ("1000", 1000),
            (77, 77),
        ):
            by_size = self.created({"config": {"resources": {"cpu": "2", "mem": size, "cuda.shares": 1}}}, "v4")
            self.assertEqual((by_size.memory, by_size.cpu_cores, by_size.gpus), (expected, 2.0, 1))
        self.assertEqual(self.created({"config": {"envs": {"A": "1"}}}).environ, {"A": "1"})
        session: dict[str, Any] = {
            "tag": None,
            "name": "pysdk-01",
            "image": "cr.backend.ai/stable/python:3.9-ubuntu20.04",
            "config": {"mounts": [], "environ": {}, "resources": {}, "mount_map": {}, "preopen_ports": None},
            "clusterSize": 1,
            "clusterMode": "single-node",
            "starts_at": None,
            "bootstrap_script": None,
            "owner_access_key": EXAMPLE.access_key,
            "domain": "default",
            "type": "interactive",
            "enqueueOnly": False,
            "maxWaitSeconds": 0,
            "reuseIfExists": False,
            "startupCommand": None,
        }
        answer = self.request("POST", "/session", session, version=b"v5.20191215")
        self.assertEqual(answer.status, 201)
        kernel = self.kernels.live[uuid.UUID(answer.json["sessionId"])]
        self.assertEqual((kernel.runtime, answer.json["sessionName"]), ("python3", "pysdk-01"))
        again = self.request("POST", "/session", session, version=b"v5.20191215")
        self.assert_problem(again, 400, "kernel-already-exists")

    def test_wishes_that_cannot_be_fulfilled(self) -> None:
        """What would make another kind of session is refused by name."""
        for wish in (
            {"bootstrap_script": "eA=="},
            {"starts_at": "tomorrow"},
            {"dependencies": ["another"]},
            {"type": "batch"},
            {"owner_access_key": "AKIASOMEBODYELSE0000"},
        ):
            self.assertIn(f"({next(iter(wish))} ", self.refused({**BASIC, **wish}))

    def test_wrong_fields_are_named(self) -> None:
        """Every field of a wrong type or range is refused by its name, and nothing is made."""
        for field, content in (
            ("lang", {"clientSessionToken": TOKEN}),
            ("lang", {**BASIC, "lang": 3}),
            ("lang", {**BASIC, "lang": ""}),
            ("lang", {**BASIC, "lang": "x" * 65}),
            ("lang", {**BASIC, "lang": "\ud800"}),
            ("clientSessionToken", {"lang": "python3"}),
            ("clientSessionToken", {**BASIC, "clientSessionToken": 12345678}),
            ("clientSessionToken", {**BASIC, "clientSessionToken": "abc"}),
            ("clientSessionToken", {**BASIC, "clientSessionToken": "x" * 81}),
            ("clientSessionToken", {**BASIC, "clientSessionToken": "a/../b"}),
            ("clientSessionToken", {**BASIC, "clientSessionToken": "käse-käse"}),
            ("limits", {**BASIC, "limits": []}),
            ("limits.maxMem", {**BASIC, "limits": {"maxMem": "much"}}),
            ("limits.maxMem", {**BASIC, "limits": {"maxMem": True}}),
            ("limits.execTimeout", {**BASIC, "limits": {"execTimeout": -1}}),
            ("resourceLimits.timeout", {**BASIC, "resourceLimits": {"timeout": 1e300}}),
            ("mounts", {**BASIC, "mounts": "all"}),
            ("config", {**BASIC, "config": "x"}),
            ("config.mounts", {**BASIC, "config": {"mounts": [1]}}),
            ("config.instanceMemory", {**BASIC, "config": {"instanceMemory": "inf"}}),
            ("config.instanceCores", {**BASIC, "config": {"instanceCores": "nan"}}),
            ("config.instanceGPUs", {**BASIC, "config": {"instanceGPUs": []}}),
            ("config.instanceGPUs", {**BASIC, "config": {"instanceGPUs": 0.5}}),
            ("config.instanceGPUs", {**BASIC, "config": {"instanceGPUs": 65}}),
            ("config.instanceTPUs", {**BASIC, "config": {"instanceTPUs": 1}}),
            ("config.resources.cuda.shares", {**BASIC, "config": {"resources": {"cuda.shares": "0.3"}}}),
            ("config.resources.cuda.device", {**BASIC, "config": {"resources": {"cuda.device": -1}}}),
            ("config.resources.rocm.device", {**BASIC, "config": {"resources": {"rocm.device": "1"}}}),
            ("config.clusterSize", {**BASIC, "config": {"clusterSize": {}}}),
            ("config.clusterSize", {**BASIC, "config": {"clusterSize": 2}}),
            ("clusterSize", {**BASIC, "clusterSize": 3}),
            ("clusterSize", {**BASIC, "clusterSize": 0.5}),
            ("config.resources.mem", {**BASIC, "config": {"resources": {"mem": "much"}}}),
            ("config.resources.cpu", {**BASIC, "config": {"resources": {"cpu": []}}}),
            ("image", {"image": "registry/", "name": TOKEN}),
            ("name", {"image": "python", "name": "a b"}),
            ("reuseIfExists", {**BASIC, "reuseIfExists": "no"}),
            ("config.environ", {**BASIC, "config": {"environ": ["A=1"]}}),
            ("config.environ", {**BASIC, "config": {"environ": {"A=B": "1"}}}),
            ("config.environ", {**BASIC, "config": {"environ": {f"A{number}": "" for number in range(65)}}}),
            ("config.environ.A", {**BASIC, "config": {"environ": {"A": 1}}}),
            ("config.environ.A", {**BASIC, "config": {"environ": {"A": "\0"}}}),
            ("config.environ.A", {**BASIC, "config": {"environ": {"A": "x" * 20000}}}),
            ("tag", {**BASIC, "tag": 1}),
            ("tag", {**BASIC, "tag": "x" * 65}),
        ):
            self.assertIn(f"({field} ", self.refused(content), content)

    def test_bodies_that_are_no_objects(self) -> None:
        """Malformed JSON and JSON of another kind are refused."""
        for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 50_000):
            answer = self.request("POST", "/v2/kernel/create", body=body)
            self.assert_problem(answer, 400, "invalid-api-params")

    def test_mounts(self) -> None:
        """Folders to mount come by name, by name and alias, or with a map of aliases; what is no name is not found."""
        for content, wishes in (
            ({"mounts": ["data"]}, [MountWish("data")]),
            ({"mounts": ["data:in/put", "b"]}, [MountWish("data", "in/put"), MountWish("b")]),
            ({"config": {"mounts": ["data:/home/work/input"]}}, [MountWish("data", "input")]),
            ({"config": {"mounts": ["a"], "mount_map": {"a": "/home/work/x"}}}, [MountWish("a", "x")]),
            ({"config": {"mounts": [], "mount_map": {"a": "x"}}}, [MountWish("a", "x")]),
            ({"config": {"mounts": None, "mount_map": None}}, []),
        ):
            self.kernels.live.clear()
            self.assertEqual(self.request("POST", "/v2/kernel/create", {**BASIC, **content}).status, 201)
            (kernel,) = self.kernels.live.values()
            self.assertEqual(list(kernel.request.mounts), wishes)
        for name in ("../x", "", "/etc", "a/b", "a\0"):
            answer = self.request("POST", "/v2/kernel/create", {**BASIC, "mounts": [name]})
            self.assert_problem(answer, 404, "folder-not-found")

    def test_domain_errors(self) -> None:
        """What the manager refuses has its own status and title."""
        for error, status, slug, title in (
            (errors.RuntimeUnknown("x"), 404, "image-not-found", "No such environment image. (x)"),
            (errors.QuotaExceeded(), 412, "quota-exceeded", "You have reached your resource limit."),
            (errors.NoAgentAvailable(), 503, "instance-not-available", "There is no available instance."),
            (
                errors.KernelAlreadyExists(),
                400,
                "kernel-already-exists",
                "The kernel already exists with a different runtime type (language).",
            ),
            (errors.KernelCreationFailed(), 500, "kernel-creation-failed", "Kernel creation has failed."),
        ):
            self.kernels.errors["create"] = error
            self.assert_problem(self.request("POST", "/v2/kernel/create", BASIC), status, slug, title)
