from hypothesis import given
from hypothesis import strategies as st

from vaopd.distributed.world import World
from vaopd.rollouts.sampler import Rollout
from vaopd.training.assignment import Shares

LENGTHS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=4), max_size=20)
"""Tokens of the responses of each problem; few enough that shares often equal turns."""


def shares_of_all(lengths: list[list[int]], size: int) -> list[Shares]:
    """Return what each of ``size`` processes makes of the same responses."""
    groups = [
        [Rollout(str(problem), k, (1,) * length, "stop") for k, length in enumerate(siblings)]
        for problem, siblings in enumerate(lengths)
    ]
    worlds = [World("ddp", rank, size) for rank in range(size)]
    return [Shares.of(groups, [3] * len(groups), world) for world in worlds]


@given(LENGTHS, st.integers(1, 9))
def test_all_processes_give_the_same_answer_to_whether_problems_move(lengths, size):
    shares = shares_of_all(lengths, size)
    assert len({share.are_turns for share in shares}) == 1
    turns = [share.world.my_slice(range(len(lengths))) for share in shares]
    assert shares[0].are_turns == ([share.problems for share in shares] == turns)


def test_the_answer_is_no_where_only_some_processes_keep_their_turn():
    # Loads 40, 30, 20, 10 over three processes: the last joins the 20, so the second process alone
    # keeps its turn, and it must enter what the others enter all the same.
    shares = shares_of_all([[37], [27], [17], [7]], 3)
    assert [share.problems for share in shares] == [[0], [1], [2, 3]]
    assert [share.are_turns for share in shares] == [False] * 3


def test_the_answer_is_yes_where_all_processes_keep_their_turn():
    assert [share.are_turns for share in shares_of_all([[5], [5], [5], [5]], 2)] == [True] * 2
    assert shares_of_all([[9], [1], [4]], 1)[0].are_turns
