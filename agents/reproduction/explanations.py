"""Why a claim is missed, as far as a cause has been found."""

from __future__ import annotations

from conserve_gym.agents.reproduction.recording import SATURATION
from conserve_gym.agents.reproduction.values import Setting, Values

_NEAR_THE_SLO = (
    "many conversations are near 5 ×: where p95 is 5 % off, violations are by a quarter."
)

_FULL_DISAGG = (
    "not found for certain. In the artifact a conversation keeps its place at the prefill "
    "engine from turn to turn unless its grown prompt no longer fits; then it waits among some "
    "two hundred, and who is next depends on the timing of polls, which is drawn here. In one "
    "line, first come first served, gmean would be 90 × and p95 140 ×. The paper's two runs, "
    "which differ in the decoders' cap alone, differ by a fifth."
)

_LAST_CONVERSATION = (
    "The paper's 62.0 tokens/J, and about 64.7 without what the prefill engine draws after its "
    "last prompt, imply that its run of ConServe took about 335 s. Ours takes "
    "{span_s conserve_oracle} s, by seed: with the paper's order one conversation, of 9,502 "
    "tokens in a turn, decodes alone for the last 67 s beside three idle GPUs. Which decoder "
    "such a conversation meets is luck: ConServe's tokens/J is "
    "{tokens_per_joule conserve_oracle} by seed and AMPD's {tokens_per_joule ampd}. The power "
    "law itself misses other readings of an A40 by 7.9 %."
)

_CAUSES = {
    "order": (
        "arms that change places are close: the paper has AMPD and ConServe 3 % apart in TBT "
        "({tbt_p95 ampd} and {tbt_p95 conserve_oracle} × here, by seed)."
    ),
    "tbt_p95 colocate_oracle": (
        "the percentile stands where the share of long mixed steps ends. Decode steps of a full "
        "engine take 4 × a lone one's, mixed steps with a later turn's prompt 5 to 7 ×, those with "
        "a piece of a first prompt 9 to 16 ×, and these last are about 4 % of all gaps: one more "
        "percent of them moves the p95 by half. By seed it is {tbt_p95 colocate_oracle} ×. Mixed "
        "steps were not measured on an A40: their law is carried over (`provenance.carried`)."
    ),
    "ttfet_slo_violation_pct colocate_oracle": _NEAR_THE_SLO,
    "tbt_slo_violation_pct colocate_oracle": _NEAR_THE_SLO,
    "e2e_slo_violation_pct colocate_oracle": _NEAR_THE_SLO,
    "ttfet_gmean full_disagg": _FULL_DISAGG,
    "ttfet_p95 full_disagg": _FULL_DISAGG,
    "e2e_p95 full_disagg": _FULL_DISAGG,
    "tbt_p95 full_disagg": (
        "not found. The prefill engine lets few conversations decode at a time; connectors that "
        "write KV into decoders while they decode are not modelled, and cost nothing here."
    ),
    "tokens_per_joule full_disagg": (
        "the decoders are almost idle, so that the figure hangs on what an A40 draws when it "
        "decodes one or two sequences at 200 W, which nobody has published."
    ),
    "ttfet_p95 ampd": (
        "it depends on which misrouted turns meet the recorded prefiller's queue, which grows to "
        "half a minute: by seed {ttfet_p95 ampd} ×."
    ),
    "e2e_p95 ampd": (
        "it depends on which misrouted turns meet the recorded prefiller's queue, which grows to "
        "half a minute: by seed {e2e_p95 ampd} ×. The paper shows one draw."
    ),
    "tokens_per_joule conserve_oracle": _LAST_CONVERSATION,
    "headline energy": (
        "the two differ by little, and by when their last conversations end. " + _LAST_CONVERSATION
    ),
    "headline caps": (
        "ours without cap is below the paper's, with it is not. " + _LAST_CONVERSATION
    ),
    "crossover": (
        "the two curves are nearly parallel there, so that little moves the point where they cross."
    ),
}


def explanation(key: str, values: Values) -> str:
    """Return the cause found for a missed claim or figure, with ranges over seeds at saturation.

    Args:
        key: A check's, or metric and arm with a blank between.
        values: Where the ranges are from.
    """
    cause = _CAUSES.get(key, "no cause has been found.")
    saturated = Setting(SATURATION)
    for metric in ("ttfet_p95", "tbt_p95", "e2e_p95", "tokens_per_joule", "span_s"):
        for arm in ("colocate_oracle", "ampd", "conserve_oracle"):
            if values.has(arm, saturated):
                found = values.by_seed(arm, metric, saturated).values()
                ranged = f"{min(found):.2f} to {max(found):.2f}"
                cause = cause.replace(f"{{{metric} {arm}}}", ranged)
    return cause
