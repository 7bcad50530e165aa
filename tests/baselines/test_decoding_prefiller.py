"""The decoding prefiller on observations made by hand."""

import pytest
from hand_made import M, observed

from conserve_gym.baselines.decoding_prefiller import DecodingPrefiller


@pytest.mark.parametrize(
    ("free", "waiting", "placement"),
    [
        # It lends half of its 1,000 tokens: 400 of its 900, less than another's 500.
        ([900, 500, 300], 0, (0, 1)),
        ([900, 390, 300], 0, (0, 0)),  # more than another's 390: colocated there
        ([600, 90, 150], 0, (0, 2)),
        # Bypassed with more than 400 prompt tokens waiting.
        ([900, 500, 300], 400, (0, 1)),
        ([900, 500, 300], 401, (1, 1)),
        # Decoded there, it is prefilled there, however many wait.
        ([900, 390, 300], 401, (0, 0)),
    ],
)
def test_lends_a_share_and_is_bypassed_when_busy(
    free: list[float], waiting: float, placement: tuple[int, int]
) -> None:
    policy = DecodingPrefiller((0,), kv_share=0.5, backlog_tokens=400)
    seen = observed((M,) * 3, free=free, fields={"prompt": 50}, prompt_in_flight=[waiting, 0, 0])
    assert policy.decide(seen)[:2] == placement


def test_lends_more_when_all_others_are_full() -> None:
    policy = DecodingPrefiller((0,), kv_share=0.5, backlog_tokens=400)
    seen = observed((M,) * 3, free=[300, 40, 20], closed=(1, 2), fields={"prompt": 50})
    assert policy.decide(seen)[:2] == (0, 0)


@pytest.mark.parametrize(("kv_share", "decode_at"), [(0.0, 1), (1.0, 0)])
def test_the_share_s_ends(kv_share: float, decode_at: int) -> None:
    policy = DecodingPrefiller((0,), kv_share=kv_share, backlog_tokens=400)
    seen = observed((M,) * 2, free=[900, 500], fields={"prompt": 50})
    assert policy.decide(seen)[:2] == (0, decode_at)


@pytest.mark.parametrize("prefillers", [(), (0, 1)])
def test_without_engines_apart_it_colocates(prefillers: tuple[int, ...]) -> None:
    policy = DecodingPrefiller(prefillers, kv_share=0.5, backlog_tokens=400)
    seen = observed((M,) * 2, free=[500, 900], fields={"prompt": 50})
    assert policy.decide(seen)[:2] == (1, 1)
