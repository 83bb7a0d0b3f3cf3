import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaopd.distributed.world import World, balanced_shares, check_launch, processes
from vaopd.errors import ConfigError, PeerError


def test_the_heaviest_problem_goes_first_to_the_process_with_the_smallest_load():
    # 9 | 7 then 5 joins the 7 (12), 4 the 9 (13), and 1 the 12.
    assert balanced_shares([5, 9, 1, 7, 4], 2) == [[1, 4], [0, 2, 3]]


def test_one_process_has_everything_in_order():
    assert balanced_shares([3, 1, 2], 1) == [[0, 1, 2]]


def test_more_processes_than_problems_leave_some_without():
    assert balanced_shares([2, 8], 4) == [[1], [0], [], []]


@given(st.lists(st.integers(1, 5000), max_size=40), st.integers(1, 9))
def test_shares_hold_every_problem_once_and_differ_by_one_problem_at_most(loads, size):
    shares = balanced_shares(loads, size)
    assert sorted(i for share in shares for i in share) == list(range(len(loads)))
    totals = [sum(loads[i] for i in share) for share in shares]
    # Greedy: the process with the largest load had the smallest before its last (lightest) problem.
    for share, total in zip(shares, totals, strict=True):
        if share:
            assert total - min(loads[i] for i in share) <= min(totals)


def test_equal_loads_are_dealt_out_evenly():
    assert [len(share) for share in balanced_shares([0] * 8, 4)] == [2, 2, 2, 2]


def test_a_world_of_one_does_not_communicate():
    world = World()
    assert world.is_main and world.gather(3) == [3] and world.sum(2.5) == 2.5
    assert world.my_slice([1, 2, 3]) == world.in_order([1, 2, 3]) == [1, 2, 3]
    assert world.on_main(lambda: "done") == world.agree(lambda: "done") == "done"
    assert not world.any(False)
    with pytest.raises(KeyError):
        world.agree(lambda: {}["missing"])


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_several_processes_need_a_launcher(no_launcher: pytest.MonkeyPatch, kind: str):
    with pytest.raises(ConfigError, match=rf"training\.parallel is {kind}, but no launcher"):
        check_launch(kind)


def test_one_kind_of_work_is_not_done_by_several_processes(no_launcher: pytest.MonkeyPatch):
    no_launcher.setenv("RANK", "0")
    no_launcher.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"training\.parallel is none, but 2 processes"):
        check_launch("none")
    check_launch("ddp")
    no_launcher.setenv("WORLD_SIZE", "1")
    check_launch("none")


def test_only_one_process_of_a_machine_says_what_is_wrong(no_launcher: pytest.MonkeyPatch):
    no_launcher.setenv("WORLD_SIZE", "2")
    for rank, error in (("0", ConfigError), ("1", PeerError)):
        no_launcher.setenv("RANK", rank)
        no_launcher.setenv("LOCAL_RANK", rank)
        with pytest.raises(error) as raised, processes("none", "cpu"):
            pass
        assert raised.value.exit_code == 2


def test_a_process_may_not_choose_a_gpu_of_its_own(no_launcher: pytest.MonkeyPatch):
    no_launcher.setenv("RANK", "0")
    no_launcher.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match="takes the GPU of its own number"),
        processes("ddp", "cuda:1"),
    ):
        pass


def test_a_plain_process_has_the_device_it_asked_for(no_launcher: pytest.MonkeyPatch):
    with processes("none", "cpu") as world:
        assert world == World(device=torch.device("cpu"))
