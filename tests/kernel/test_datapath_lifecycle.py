"""Loading, adopting, updating and removing; verifier and layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nodelab
import pytest
from nodelab import BPF, CAPACITIES, PODS, VIP, Child, Node, Place, attempt, remove_cgroup

from xdsbpf.datapath import abi, pins
from xdsbpf.datapath.attach import NODE_HOOKS, PROXY_HOOK, Attachments, detach_all
from xdsbpf.datapath.features import probe_features
from xdsbpf.datapath.layout import check_layout, read_object_btf
from xdsbpf.datapath.loader import Datapath, open_datapath
from xdsbpf.datapath.objects import Link
from xdsbpf.errors import AdoptRefused, DatapathError, LayoutMismatch, VerifierError

pytestmark = pytest.mark.root
ROOT = Path("/sys/fs/bpf/xbk-life")
CGROUP = Path("/sys/fs/cgroup/unified/xbklife")
# Instructions that the verifier walked on 6.18, with a third to spare: growth is to be seen.
WALKED = {
    "xb_connect4": 2900,
    "xb_connect6": 2900,
    "xb_getpeername4": 90,
    "xb_getpeername6": 90,
    "xb_getsockopt": 230,
    "xb_ingress": 750,
    "xb_release": 90,
    "xb_sockops": 650,
    "xb_veth": 350,
}


@pytest.fixture
def place(lab: Node, object_file: Path) -> Iterator[Place]:
    """A client in pod 1's network and a cgroup that no other test's programs see."""
    detach_all(ROOT)
    CGROUP.mkdir(exist_ok=True)
    yield Place("life", CGROUP, lab.pods[1].netns)
    detach_all(ROOT)
    remove_cgroup(CGROUP)


def load(object_file: Path) -> Datapath:
    return open_datapath(ROOT, object_file=object_file, capacities=CAPACITIES)


def attached(cgroup: Path) -> dict[str, list[int]]:
    """Program name to the ids attached at `cgroup`, by bpftool."""
    text = subprocess.run(["bpftool", "-j", "cgroup", "show", str(cgroup)], check=True, capture_output=True).stdout
    found: dict[str, list[int]] = {}
    for entry in json.loads(text.strip() or "[]"):
        found.setdefault(entry["name"], []).append(entry["id"])
    return found


def exists(kind: str, identifier: int) -> bool:
    command = ["bpftool", kind, "show", "id", str(identifier)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_every_program_passes_the_verifier_within_its_budget(loaded: Datapath) -> None:
    walked = {name: program.verified for name, program in loaded.programs.items()}
    assert set(walked) == set(WALKED)
    assert {name: count for name, count in walked.items() if not 0 < count <= WALKED[name]} == {}


def test_what_the_loader_attached_works_on_after_it_is_gone(place: Place, object_file: Path) -> None:
    def load_and_leave(ready: Callable[[bool], None]) -> None:
        datapath = load(object_file)
        Attachments(datapath).attach_node(CGROUP)
        nodelab.balance(datapath.tables, {PODS[2]: 1})
        ready(True)

    host = Place("loader", nodelab.ROOT_CGROUP, nodelab.NODE_NETNS)
    Child(host, load_and_leave).kill()
    assert place.run(lambda: attempt(VIP, 80)) == "pod2"


def test_a_new_loader_adopts_the_maps_and_updates_each_link_in_place(place: Place, object_file: Path) -> None:
    with load(object_file) as first:
        assert not first.adopted
        Attachments(first).attach_node(CGROUP)
        nodelab.balance(first.tables, {PODS[2]: 1})
        first.tables.names.put(abi.NameKey(abi.NameSpace.SERVICE, 1), abi.Name("reviews:80"))
    before = attached(CGROUP)
    links = {pin: link_id(pin) for pin in (pins.layout_directory(ROOT) / pins.LINKS).iterdir()}

    with load(object_file) as second:
        assert second.adopted
        assert second.tables.names.get(abi.NameKey(abi.NameSpace.SERVICE, 1)) == abi.Name("reviews:80")
        Attachments(second).attach_node(CGROUP)
        after = attached(CGROUP)
        assert after == {name: [second.programs[name].id] for name in NODE_HOOKS}
        assert all(before[name] != after[name] for name in NODE_HOOKS)
        assert {pin: link_id(pin) for pin in links} == links
    assert place.run(lambda: attempt(VIP, 80)) == "pod2"


def link_id(pin: Path) -> int:
    with Link.from_pin(pin) as link:
        return int(link.info().id)


def test_no_connection_slips_past_while_programs_are_replaced(place: Place, object_file: Path) -> None:
    # Without a program the service address is unreachable, so one gap is one failure.
    with load(object_file) as first:
        Attachments(first).attach_node(CGROUP)
        nodelab.balance(first.tables, {PODS[2]: 1})
    stop, told = os.pipe()

    def client(ready: Callable[[bool], None]) -> None:
        ready(True)
        os.set_blocking(stop, False)
        count = failed = 0
        while True:
            count, failed = count + 1, failed + (attempt(VIP, 80) != "pod2")
            try:
                os.read(stop, 1)
                os.write(answer_in, json.dumps([count, failed]).encode())
                return
            except BlockingIOError:
                continue

    answer_out, answer_in = os.pipe()
    child = Child(place, client)
    try:
        for _ in range(10):
            with load(object_file) as datapath:
                Attachments(datapath).attach_node(CGROUP)
        os.write(told, b".")
        count, failed = json.loads(os.read(answer_out, 100))
    finally:
        child.kill()
        for descriptor in (stop, told, answer_out, answer_in):
            os.close(descriptor)
    assert count > 20
    assert failed == 0


def test_a_link_whose_cgroup_was_made_anew_is_replaced(place: Place, object_file: Path) -> None:
    with load(object_file) as datapath:
        hooks = Attachments(datapath)
        nodelab.balance(datapath.tables, {PODS[2]: 1})
        hooks.attach_node(CGROUP)
        CGROUP.rmdir()
        CGROUP.mkdir()
        assert place.run(lambda: attempt(VIP, 80)) != "pod2"
        hooks.attach_node(CGROUP)
        assert place.run(lambda: attempt(VIP, 80)) == "pod2"


def test_detach_leaves_nothing(place: Place, lab: Node, object_file: Path) -> None:
    with load(object_file) as datapath:
        hooks = Attachments(datapath, netns=lab.host.netns_file)
        hooks.attach_node(CGROUP)
        hooks.attach_proxy(CGROUP)
        hooks.attach_veth(lab.interfaces[2])
        links = [link_id(pin) for pin in (pins.layout_directory(ROOT) / pins.LINKS).iterdir()]
        maps = [kernel_map.id for kernel_map in datapath.maps.values()]
        programs = [program.id for program in datapath.programs.values()]
        assert len(links) == len(NODE_HOOKS) + 2
        assert set(attached(CGROUP)) == {*NODE_HOOKS, PROXY_HOOK[0]}
        assert all(exists("link", identifier) for identifier in links)

        detach_all(ROOT)

        assert attached(CGROUP) == {}
        assert not ROOT.exists()
    nodelab.wait_until(lambda: not any(exists("link", i) for i in links), "links gone")
    nodelab.wait_until(lambda: not any(exists("map", i) for i in maps), "maps gone")
    nodelab.wait_until(lambda: not any(exists("prog", i) for i in programs), "programs gone")
    detach_all(ROOT)


def test_two_nodes_on_one_kernel_do_not_share_maps(place: Place, loaded: Datapath, object_file: Path) -> None:
    with load(object_file) as other:
        nodelab.balance(other.tables, {PODS[2]: 1})
        assert other.tables.frontends.get(nodelab.frontend_key()) is not None
        assert loaded.tables.frontends.get(nodelab.frontend_key()) is None


# --- refusals --------------------------------------------------------------------------------


def variant(tmp_path: Path, file: str, old: str, new: str) -> Path:
    """The programs with one text replaced, built aside."""
    tree = tmp_path / "bpf"
    shutil.copytree(BPF, tree)
    source = tree / file
    text = source.read_text()
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    subprocess.run(["make", "-s", "-C", str(tree)], check=True, capture_output=True)
    return tree / "build" / "xdsbpf.o"


def test_a_program_that_the_verifier_refuses_is_named_with_the_reason(place: Place, tmp_path: Path) -> None:
    broken = variant(tmp_path, "xb_release.bpf.c", "if (!socket || socket->state", "if (socket->state")
    with pytest.raises(VerifierError) as caught:
        open_datapath(ROOT, object_file=broken)
    assert "load xb_release" in str(caught.value)
    assert "invalid mem access 'map_value_or_null'" in caught.value.log
    assert not list(pins.layout_directory(ROOT).glob("xb_*")), "a failed load leaves no pins"


def test_fields_that_changed_places_are_noticed_in_the_object_and_in_pinned_maps(
    place: Place, tmp_path: Path, object_file: Path
) -> None:
    swapped = variant(
        tmp_path,
        "include/xb_abi.h",
        "\t__u32 slot_offset;\n\t__u32 slot_count;\n",
        "\t__u32 slot_count;\n\t__u32 slot_offset;\n",
    )
    with pytest.raises(LayoutMismatch, match=r"struct xb_frontend member slot_offset: u32 slot_count at byte 4"):
        open_datapath(ROOT, object_file=swapped)
    assert not ROOT.exists(), "the check comes before anything is made"

    directory = pins.make_directories(ROOT)
    command = ["bpftool", "prog", "loadall", str(swapped), str(ROOT / "programs"), "pinmaps", str(directory)]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(ROOT / "programs")
    with pytest.raises(LayoutMismatch, match=r"xb_frontends: struct xb_frontend member slot_offset"):
        load(object_file)


def test_an_enumerator_with_another_value_is_noticed(tmp_path: Path, object_file: Path) -> None:
    check_layout(read_object_btf(object_file), "the object")
    changed = variant(tmp_path, "include/xb_abi.h", "XB_VERDICT_DENY = 2", "XB_VERDICT_DENY = 3")
    with pytest.raises(LayoutMismatch, match=r"enum xb_verdict differs at XB_VERDICT_DENY"):
        check_layout(read_object_btf(changed), "the object")


def test_a_pinned_map_of_another_size_is_not_adopted(place: Place, object_file: Path) -> None:
    pin = pins.make_directories(ROOT) / "xb_policies"
    sizes = ["key", "12", "value", "16", "entries", "8"]
    subprocess.run(["bpftool", "map", "create", str(pin), "type", "hash", *sizes, "name", "x"], check=True)
    with pytest.raises(LayoutMismatch, match=r"xb_policies: value_size 16, expected 8"):
        load(object_file)


@pytest.mark.parametrize("foreign", ["xb_config", "links", "."])
def test_pins_that_are_not_roots_alone_are_refused(place: Place, object_file: Path, foreign: str) -> None:
    load(object_file).close()
    path = pins.layout_directory(ROOT) / foreign
    os.chown(path, 65534, 65534)
    with pytest.raises(AdoptRefused, match="owner 65534"):
        load(object_file)
    os.chown(path, 0, 0)
    path.chmod(0o777)
    with pytest.raises(AdoptRefused, match="is not root's alone"):
        load(object_file)
    path.chmod(0o700)
    load(object_file).close()


def test_a_root_outside_of_a_bpf_file_system_is_refused(tmp_path: Path, object_file: Path) -> None:
    with pytest.raises(DatapathError, match="no BPF file system"):
        open_datapath(tmp_path / "pins", object_file=object_file)
    (tmp_path / "v1").mkdir()
    with pytest.raises(DatapathError, match="no BPF file system"):
        detach_all(tmp_path)
    assert (tmp_path / "v1").exists()


def test_an_unknown_map_in_capacities_is_refused(place: Place, object_file: Path) -> None:
    with pytest.raises(DatapathError, match="xb_nothing"):
        open_datapath(ROOT, object_file=object_file, capacities={"xb_nothing": 1})


def test_a_missing_object_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(DatapathError) as caught:
        open_datapath(ROOT, object_file=tmp_path / "none.o")
    assert "make -C bpf" in caught.value.hint


def test_this_kernel_has_every_feature_and_the_answers_are_conclusive() -> None:
    assert {feature.name: feature.detail for feature in probe_features() if not feature.supported} == {}


def test_the_committed_abi_is_what_the_object_says(object_file: Path) -> None:
    subprocess.run(["make", "-s", "-C", str(BPF), "check-abi"], check=True, capture_output=True)
