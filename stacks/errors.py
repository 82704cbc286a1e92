"""Every error that run-launcher raises on purpose.

RunLauncherError
├── UsageError                 the call itself is wrong (exit 2)
│   ├── ConfigurationError     run-launcher.yaml, environment or flags
│   ├── TemplateError          a launcher template, with file and line
│   ├── SetupError             no engine could be found or brought
│   └── ForkedError            a launcher used in a process forked after its first use
├── KeyMismatchError           the backend's key is missing or another one (exit 3)
├── LaunchConflictError        the id is taken by another command, or its run is over (exit 4)
├── LaunchFailedError          the target refused the worker (exit 4)
├── WrongPlaceError            the worker lives elsewhere; the wish is recorded (exit 4)
├── EngineError                the engine failed for a reason of its own (exit 4)
│   ├── TargetAwayError        the target does not answer (exit 4)
│   ├── BackendError           the backend does not answer, or not as it should (exit 4)
│   │   └── BackendAccessError  the backend refuses the caller's credentials (exit 3)
│   ├── ClaimLostError         the backend was away so long that others may have taken over (exit 4)
│   ├── DamagedFileError       a file that is kept says nothing (exit 4)
│   └── StackLockedError       somebody else works on this run (exit 4)
├── PolicyError                refused by the template (exit 5)
├── LimitReachedError          too many runs, or too much in use, for now (exit 5)
├── RunNotFoundError           no such run (exit 6)
├── RunCancelledError          terminated while it was launched (exit 8)
└── TimeLimitError             a time limit passed (exit 9)

Each answers three questions: may the call be repeated unchanged (`retryable`), who can repair it (`repair`),
and did a worker start (`started`). The exit codes are those that Pulumi publishes for its own command line.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Repair(StrEnum):
    """Who can repair what went wrong."""

    USER = "user"
    TEMPLATE_OWNER = "template owner"
    OPERATOR = "operator"


class Started(StrEnum):
    """Whether a worker of the run has started when the error reaches the caller."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


class RunLauncherError(Exception):
    """The root of the tree; its text says what happened and what to do next.

    `details` holds the engine's or the target's own words, for `-v`.
    """

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    repair: ClassVar[Repair] = Repair.OPERATOR

    def __init__(self, message: str, *, started: Started = Started.NO, details: str = "") -> None:
        super().__init__(message)
        self.started = started
        self.details = details


class UsageError(RunLauncherError):
    """The call itself is wrong; nothing was done."""

    exit_code = 2
    repair = Repair.USER


class ConfigurationError(UsageError):
    """The configuration is wrong; nothing was done."""


class TemplateError(UsageError):
    """The launcher template is wrong, at the file and line named; nothing was done."""

    repair = Repair.TEMPLATE_OWNER


class SetupError(UsageError):
    """No engine was found and none could be brought; the message lists the ways out."""

    repair = Repair.OPERATOR


class ForkedError(UsageError):
    """The launcher was used before this process was forked; its threads did not come along."""


class KeyMismatchError(RunLauncherError):
    """The backend's key is missing, or is not the one that it was made with; nothing was done."""

    exit_code = 3


class LaunchConflictError(RunLauncherError):
    """The run id is taken: by another command, or by a run that is over. Nothing was started."""

    exit_code = 4
    repair = Repair.USER


class LaunchFailedError(RunLauncherError):
    """The target did not accept the worker; what had been made of it is gone."""

    exit_code = 4
    repair = Repair.USER


class WrongPlaceError(RunLauncherError):
    """The worker lives in another place; the wish is recorded for whoever reconciles there."""

    exit_code = 4
    retryable = True


class EngineError(RunLauncherError):
    """The engine failed for a reason of its own."""

    exit_code = 4
    retryable = True


class TargetAwayError(EngineError):
    """The target does not answer: how its workers are cannot be told now."""


class BackendError(EngineError, OSError):
    """The backend does not answer, or not as it should: where a disk's failure is survived, this one is too."""


class BackendAccessError(BackendError):
    """The backend refuses the caller's credentials."""

    exit_code = 3
    retryable = False


class ClaimLostError(EngineError):
    """This process could not renew its lease for so long that others may work on the run: it does not go on."""


class DamagedFileError(EngineError):
    """A file that is kept says nothing, as a power failure leaves it."""

    retryable = False

    def __init__(self, path: str) -> None:
        message = (
            f"the file {path} is damaged (a power failure can leave one empty): restore it from a backup, "
            "or remove it if there is none"
        )
        super().__init__(message, started=Started.UNKNOWN)


class StackLockedError(EngineError):
    """Somebody else works on this run; the message names who and since when."""


class PolicyError(RunLauncherError):
    """The template does not allow what the run asks for; nothing was done.

    `field` is what was asked for, `bound` what may be, `where` the file and line that says so, `owner` whose that is.
    """

    exit_code = 5
    repair = Repair.TEMPLATE_OWNER

    def __init__(self, message: str, *, field: str = "", bound: str = "", where: str = "", owner: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.bound = bound
        self.where = where
        self.owner = owner


class LimitReachedError(RunLauncherError):
    """The runs that are there take all that a limit of the configuration allows; nothing was done.

    The same launch succeeds once enough of them have ended.
    """

    exit_code = 5
    retryable = True


class RunNotFoundError(RunLauncherError):
    """No run of that name is known here."""

    exit_code = 6
    repair = Repair.USER


class RunCancelledError(RunLauncherError):
    """The run was terminated while it was launched; its worker is gone."""

    exit_code = 8
    repair = Repair.USER


class TimeLimitError(RunLauncherError):
    """A time limit passed; after a launch's, no worker will start later."""

    exit_code = 9
    retryable = True
