"""Telling clients that their jobs are over, as Standard Webhooks (https://www.standardwebhooks.com) has it.

A delivery is a column of the job's row, so it survives this process, and any server of the store may make it. It is
made at least once; `webhook-id` is the same every time, so that a receiver can tell.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpcore
import httpx
from pydantic_core import to_json
from standardwebhooks import Webhook

from cosmorama.errors import InvalidRequestError, JobNotFoundError, MediaError, Problem, StoreUnavailableError
from cosmorama.jobs.model import Job
from cosmorama.jobs.store import Delivery, Store
from cosmorama.media.fetch import RefusedAddressError, guarded, host_of, is_private_literal, parse_url

log = logging.getLogger(__name__)

RETRIES_S = (2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 21600.0, 43200.0)
"""Waits after the first, second, ... failure; after the last the delivery is given up."""
TIMEOUT_S = 10.0
LOOK_EVERY_S = 2.0
GIVE_BACK_S = 2.0
"""For how long a stop waits for the store to take back the deliveries that it cuts off."""
AT_ONCE, PER_HOST, PER_OWNER = 64, 2, 8
"""Deliveries under way at a time: of this server, to one receiver, and for one owner of jobs."""
_GONE = 410


def check_url(url: str, *, allow_private: bool) -> None:
    """Refuse what can never be delivered to.

    Raises:
        InvalidRequestError: not an http(s) URL, one with a user name or a password, or an address that is not on the
            public internet where private ones are not allowed.
    """
    try:
        host = host_of(parse_url(url, "webhook_url"))
        if not allow_private and is_private_literal(host):
            raise MediaError("webhook_url", "leads to an address that is not on the public internet")
    except MediaError as error:
        accepted = f"an http(s) URL without a password (it {error.message})"
        raise InvalidRequestError(Problem("webhook_url", url, accepted)) from None


def message(job: Job) -> bytes:
    """The body that tells of a job's end."""
    when = datetime.fromtimestamp(job.finished_at or job.created_at, UTC).isoformat()
    return to_json({"type": f"job.{job.state}", "timestamp": when, "data": job.summary()})


class Webhooks:
    """Delivers what is due.

    Args:
        store: Where deliveries are.
        secret: Signs the messages.
        allow_private: Whether receivers may be at addresses that are not on the public internet.
    """

    def __init__(self, store: Store, secret: str, *, allow_private: bool = False) -> None:
        self._store = store
        self._signer = Webhook(secret)
        self._allow_private = allow_private
        self._woken = asyncio.Event()
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()
        self._owners: Counter[str] = Counter()

    def wake(self) -> None:
        """A job with a webhook is over."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled: each delivery is a task, and none waits for the receivers of others."""
        try:
            while True:
                self._woken.clear()
                try:
                    # Whose receivers hold up fewer goes first: to one host all have the same few places.
                    for due in sorted(await self._store.due_webhooks(), key=lambda due: self._owners[due.owner]):
                        self._begin(due)
                except StoreUnavailableError:
                    pass  # the dispatcher has said so in the log
                except Exception:
                    log.exception("a look at webhooks failed")
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._woken.wait()
        finally:
            cut_off = dict(self._under_way)
            for task in cut_off.values():
                task.cancel()
            await asyncio.gather(*cut_off.values(), return_exceptions=True)
            # Whoever comes next need not wait until they would have timed out here.
            with suppress(StoreUnavailableError, TimeoutError):
                async with asyncio.timeout(GIVE_BACK_S):
                    await self._store.give_back_webhooks(list(cut_off))

    def _begin(self, due: Delivery) -> None:
        """Begin a delivery, unless its receiver, its owner or this server has enough of them at a time."""
        host = urlsplit(due.url).netloc.lower()
        most = PER_OWNER if due.owner else AT_ONCE  # without keys all jobs have the same owner, who is nobody
        if len(self._under_way) >= AT_ONCE or due.job_id in self._under_way:
            return
        if self._hosts[host] >= PER_HOST or self._owners[due.owner] >= most:
            return
        self._hosts[host] += 1
        self._owners[due.owner] += 1
        task = self._under_way[due.job_id] = asyncio.create_task(self._deliver(due))

        def ended(task: asyncio.Task[None]) -> None:
            del self._under_way[due.job_id]
            for counts, key in ((self._hosts, host), (self._owners, due.owner)):
                counts[key] -= 1
                if not counts[key]:
                    del counts[key]
            self._woken.set()

        task.add_done_callback(ended)

    async def _deliver(self, due: Delivery) -> None:
        try:
            if not await self._store.take_webhook(due, 3 * TIMEOUT_S):
                return  # another server did
            job = await self._store.get(due.job_id)
            problem = await self._post(due.url, job)
            retry_in_s = None
            if problem is not None:
                last = due.attempts > len(RETRIES_S) or problem == str(_GONE)
                # Jitter, so that a receiver that was away is not met by all of them at once.
                retry_in_s = None if last else RETRIES_S[due.attempts - 1] * random.uniform(0.9, 1.1)
                log.warning("webhook of job %s, attempt %d: %s%s", job.id, due.attempts, problem, "; given up" * last)
            await self._store.set_webhook(due.job_id, retry_in_s)
        except JobNotFoundError:
            pass
        except StoreUnavailableError:
            pass  # it is due again when this delivery's time has passed
        except Exception:
            log.exception("the webhook of job %s failed", due.job_id)

    async def _post(self, address: str, job: Job) -> str | None:
        """Post the message; what went wrong, if anything did."""
        url, body = httpx.URL(address), message(job)
        number, now = f"msg_{job.id}", datetime.fromtimestamp(self._store.database.time(), UTC)
        headers: dict[bytes | str, bytes | str] = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "User-Agent": "cosmorama",
            "webhook-id": number,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(number, now, body.decode()),
        }
        try:
            # A redirect is not followed: it could lead a signed message anywhere.
            async with (
                asyncio.timeout(TIMEOUT_S),
                guarded("POST", url, headers, content=body, allow_private=self._allow_private) as response,
            ):
                return None if 200 <= response.status < 300 else str(response.status)
        except RefusedAddressError:
            return "the address is not on the public internet"
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError, ValueError) as error:
            return str(error) or type(error).__name__
