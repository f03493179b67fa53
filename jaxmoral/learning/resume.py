"""Whether, and as what, a run goes on: decided from its checkpoint before any model is loaded."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxmoral.config import Config, PromptConfig
from jaxmoral.config.states import Resolved
from jaxmoral.errors import UserError
from jaxmoral.learning.checkpoint import Checkpoints, changed_keys, shown_members
from jaxmoral.learning.mixture import presentation_with
from jaxmoral.learning.resolve import resolve
from jaxmoral.learning.run_folder import has_checkpoints, named_checkpoint
from jaxmoral.learning.whom import as_pinned
from jaxmoral.models.load import same_base


def go_on(
    folder: Path,
    members: Mapping[str, Config],
    *,
    extend: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Resolved] | None:
    """The configurations with which a run folder's newest checkpoint is trained on.

    Args:
      folder: of the run or the population.
      members: the configurations asked for, by name.
      extend: whether more updates may follow even if a schedule depends on their number.
      say: where lines for people go.

    Returns:
      The members, resolved and in the checkpoint's order, with what only files can tell as it was
      when the run began; None if there is no checkpoint yet.

    Raises:
      UserError: the checkpoint belongs to other configurations, or to more updates, or it cannot go
        on for longer and be what a longer run would have been.
    """
    if not has_checkpoints(folder):
        say(f"{folder} holds no checkpoints; training begins again")
        return None
    with Checkpoints(folder) as checkpoints:
        saved = checkpoints.newest_configs()
    if saved is None:
        say(f"{folder} holds no checkpoint yet; training begins again")
        return None
    if set(saved) != set(members):
        raise UserError(
            f"the checkpoint in {folder} belongs to {shown_members(saved)}, not to"
            f" {shown_members(members)}"
        )
    found = {name: as_begun(members[name], own) for name, own in saved.items()}
    changed = [key for name in saved for key in changed_before(found[name], saved[name])]
    if changed:
        raise UserError(
            f"the checkpoint in {folder} belongs to another configuration; it differs in"
            f" {', '.join(dict.fromkeys(changed))}"
        )
    _check_length(folder, found, saved=saved, extend=extend, say=say)
    return found


def as_begun(config: Config, saved: Config) -> Resolved:
    """The resolved configuration with what only files could tell as it was when the run began."""
    model, lora, reward = config.model, config.lora, config.reward
    if same_base(model.source, saved.model.source):  # the commit that was read then
        model = dataclasses.replace(model, source=saved.model.source)
    if model.sha256 is None:
        model = dataclasses.replace(model, sha256=saved.model.sha256)
    if _same_adapter(lora.adapter, saved.lora.adapter):  # it decides the rest
        lora = dataclasses.replace(saved.lora, dropout=lora.dropout)
    if reward.switch_at is None:
        reward = dataclasses.replace(reward, switch_at=saved.reward.switch_at)
    marks = {
        name: getattr(saved.thinking, name)
        for name in ("cue", "stop")
        if getattr(config.thinking, name) is None  # the wording and the tokenizer decide
    }
    thinking = dataclasses.replace(config.thinking, **marks)
    config = dataclasses.replace(config, model=model, lora=lora, reward=reward, thinking=thinking)
    return resolve(as_pinned(config, saved))


def _same_adapter(asked: str | None, saved: str | None) -> bool:
    """Whether a run that began with an adapter has the one that is asked for, by these names."""
    if asked is None or saved is None:
        return False
    if asked == saved:
        return True
    (folder, update), (began, _) = named_checkpoint(asked), named_checkpoint(saved)
    return folder == began and not isinstance(update, int)  # it was pinned then


def changed_before(config: Config, saved: Config) -> list[str]:
    """The keys in which they differ, as far as can be told without the model."""
    prompt = config.prompt
    wording, persona, *_ = presentation_with(config, prompt.labels)
    prompt = dataclasses.replace(prompt, wording=wording, persona=persona)
    # Which labels are drawn only the tokenizer can tell; each has a token a letter.
    lengths = {len(label) for label in saved.prompt.labels}
    were_drawn = lengths == {prompt.random_labels} and saved.prompt.labels != PromptConfig().labels
    drawn = ("prompt.labels", "prompt.random_labels") if were_drawn else ()
    return [
        key
        for key in changed_keys(dataclasses.replace(config, prompt=prompt), saved)
        if key not in drawn
    ]


def _check_length(
    folder: Path,
    members: Mapping[str, Config],
    *,
    saved: Mapping[str, Config],
    extend: bool,
    say: Callable[[str], None],
) -> None:
    """Raises UserError if the members cannot go on for as many updates as they ask for."""
    asked, begun = (next(iter(configs.values())).updates for configs in (members, saved))
    if asked == begun:
        return
    if asked < begun:
        raise UserError(
            f"updates: the run in {folder} is one of {begun} updates; {asked} are fewer"
        )
    schedules = list(dict.fromkeys(key for own in saved.values() for key in _schedules(own)))
    if not schedules:
        say(
            f"longer     {asked} updates instead of {begun}; the same as a run of {asked} from the"
            " start"
        )
        return
    kept = "; reward.switch_at stays as it is" if "reward.switch_at" in schedules else ""
    told = f"{', '.join(schedules)} depend{'s' * (len(schedules) == 1)} on the number of updates"
    if not extend:
        raise UserError(
            f"updates: the run in {folder} is one of {begun}, and {told}; it cannot become the same"
            f" as a run of {asked}. With train, --resume --extend goes on from where it is, by the"
            f" schedules of {asked} updates{kept}"
        )
    say(
        f"longer     {asked} updates instead of {begun}; {told}, so this is not what a run of"
        f" {asked} would have been"
    )


def _schedules(config: Config) -> list[str]:
    """The keys by which what an update does depends on how many there are."""
    ppo, reward = config.ppo, config.reward
    depends = {
        "ppo.learning_rate_schedule": ppo.learning_rate_schedule != "constant",
        # There is no entropy term in a loss over tokens, nor in what a teacher says.
        "ppo.final_entropy_coef": (ppo.level == "outcome" and config.objective == "reward")
        and ppo.entropy_coef != ppo.final_entropy_coef,
        "reward.transition": reward.then is not None and reward.transition == "linear",
        # By default half-way; a run folder does not say whether it was asked for.
        "reward.switch_at": reward.switch_at is not None
        and reward.switch_at == config.updates // 2,
    }
    return [key for key, does in depends.items() if does]
