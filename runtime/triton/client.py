"""The client: restores pictures on servers, over gRPC or HTTP, in asyncio (`AsyncClient`) or without it (`Client`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from diffbody_ref.ops.images import Picture, decode_image
from runtime.triton.addresses import NO_PROXY_FOR_GRPC, Address, parse
from runtime.triton.config import ClientConfig
from runtime.triton.contract import (
    ANSWER,
    API_KEY_HEADER,
    CANCEL_MODEL,
    GRPC_HEADER_PREFIX,
    GRPC_STATUS,
    IMAGE,
    MODEL,
    NUMPY,
    OUTPUT,
    PIXELS,
    PREVIEW,
    PREVIEW_EVERY,
    REPORT,
    REQUEST,
    REQUEST_ID,
    STEP,
    STEPS,
    STREAM_MODEL,
    TIME_IS_OVER,
    WAS_CANCELLED,
    TritonTensor,
)
from runtime.triton.errors import split_code
from runtime.triton.messages import RestorationReport

T = TypeVar("T")

Image = bytes | Path | np.ndarray
"""An encoded picture, the path of a picture file, or RGB as uint8 (H, W, 3)."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds between tries; each pause is twice the last
DEAD_SECONDS = 10.0  # how long a server that did not answer is left out, while there are others
GRACE_SECONDS = 5.0  # beyond a deadline, in which the server may report it itself
LEAVE_SECONDS = 1.0  # to ask for a cancellation, and again for the answer to what was cancelled
WAYS = ("send", "receive")
# gRPC's words for a connection that failed or broke; the server's own "unavailable" tells what it is busy with.
BROKEN = ("connect", "socket closed", "connection reset", "recvmsg", "goaway", "end of tcp", "stream removed")


class ClientError(RuntimeError):
    """A restoration failed; the message is one line that names the server."""


class InvalidRequestError(ClientError, ValueError):
    """The server refuses the request as it is: its picture, or an option."""


class UnavailableError(ClientError, ConnectionError):
    """No server answered, or all were busy, at every try."""


class DeadlineError(ClientError, TimeoutError):
    """The answer did not come in time."""


class AccessError(ClientError, PermissionError):
    """The server asks for an API key, or for another one."""


@dataclass(frozen=True)
class SamplingProgress:
    """How far a restoration is.

    Attributes:
        step: number of steps done.
        steps: number of steps in all.
        preview: the picture so far (JPEG), where one was asked for.
    """

    step: int
    steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """A server's answer.

    Attributes:
        image: the restored picture as the server encoded it.
        report: what the server tells about its work.
    """

    image: bytes
    report: RestorationReport

    @property
    def picture(self) -> Picture:
        """The restored picture, decoded."""
        return decode_image(self.image, "the server's answer")


@dataclass
class _Server:
    """One server.

    Attributes:
        address: where it is.
        client: tritonclient's, once it is needed.
        dead_until: on the monotonic clock; until then it is left out.
    """

    address: Address
    client: Any = None
    dead_until: float = 0.0

    @property
    def url(self) -> str:
        """As it was given."""
        return self.address.url

    @property
    def protocol(self) -> str:
        """ "grpc" or "http"."""
        return self.address.protocol


class AsyncClient:
    """Restores pictures on servers, for asyncio. An asynchronous context manager.

    Raises:
        ValueError: a server's URL is none.
    """

    def __init__(self, config: ClientConfig | None = None) -> None:
        self.config = config or ClientConfig()
        self.servers = [_Server(parse(url)) for url in self.config.urls]
        self._next = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            if server.client is not None:
                await server.client.close()
                server.client = None

    async def restore(
        self,
        image: Image,
        *,
        on_progress: Callable[[SamplingProgress], None] | None = None,
        preview_every: int = 0,
        **asked: Any,
    ) -> Answer:
        """Restore a picture.

        Args:
            image: the degraded picture.
            on_progress: called after each step (gRPC only).
            preview_every: number of steps between previews for `on_progress`; 0 is none.
            asked: prompt, negative_prompt, seed, output_format, and the options of
                `diffbody_ref.ops.options.RestoreOptions`; what is left out, or None, is the server's default.

        Raises:
            InvalidRequestError: the server refuses the request as it is.
            UnavailableError: no server answered, or all were busy, at every try.
            DeadlineError: the answer did not come in time.
            AccessError: the server asks for another API key.
            ClientError: any other failure, such as a fault of the server.
        """
        tensors = request_tensors(image, asked)
        if preview_every:
            tensors[PREVIEW_EVERY.name] = np.array([preview_every], np.int64)
        request_id, deadline = uuid.uuid4().hex, time.monotonic() + self.config.timeout
        pause, last = FIRST_PAUSE, ClientError("")
        for attempt in range(self.config.tries):
            server = self._choose(on_progress is not None)
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                return await self._ask_or_cancel(server, tensors, request_id, left, on_progress)
            except TimeoutError as error:
                if isinstance(error, DeadlineError):
                    raise
                break
            except UnavailableError as error:
                last = error
                alone = all(other.dead_until > time.monotonic() for other in self.servers)
                if attempt + 1 < self.config.tries and (alone or server.dead_until <= time.monotonic()):
                    await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))
                    pause = min(2 * pause, LONGEST_PAUSE)
        else:
            raise last
        raise DeadlineError(f"{server.url}: no answer within {self.config.timeout:g} s")

    async def restore_many(
        self, images: Iterable[Image], **asked: Any
    ) -> AsyncIterator[tuple[int, Answer | ClientError]]:
        """Restore pictures, `concurrency` at a time; arguments as those of `restore`.

        Yields:
            The number of a picture, from 0, with its answer or error, in the order in which they come.
        """
        limit = asyncio.Semaphore(self.config.concurrency)

        async def one(number: int, image: Image) -> tuple[int, Answer | ClientError]:
            async with limit:
                try:
                    return number, await self.restore(image, **asked)
                except ClientError as error:
                    return number, error

        tasks = [asyncio.ensure_future(one(number, image)) for number, image in enumerate(images)]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()

    async def is_ready(self) -> bool:
        """Whether at least one of the servers can answer."""
        for server in self.servers:
            with contextlib.suppress(Exception):
                if await self._client(server).is_server_ready():
                    return True
        return False

    def _choose(self, stream: bool) -> _Server:
        """The next server that is not dead, or the one that is dead for longest.

        Raises:
            InvalidRequestError: a stream is wanted, and no server speaks gRPC.
        """
        usable = [server for server in self.servers if server.protocol == "grpc" or not stream]
        if not usable:
            raise InvalidRequestError(f"{self.servers[0].url}: progress can be reported over gRPC only")
        turn = self._next
        self._next += 1
        in_turn = [usable[(turn + place) % len(usable)] for place in range(len(usable))]
        now = time.monotonic()
        alive = [server for server in in_turn if server.dead_until <= now]
        return alive[0] if alive else min(in_turn, key=lambda server: server.dead_until)

    def _client(self, server: _Server) -> Any:
        if server.client is None:
            if server.protocol == "grpc":
                from tritonclient.grpc.aio import InferenceServerClient
            else:
                from tritonclient.http.aio import InferenceServerClient
            server.client = InferenceServerClient(server.address.host_and_port, **_connection(server.address))
        return server.client

    def _headers(self, server: _Server) -> dict[str, str]:
        if self.config.api_key is None:
            return {}
        prefix = GRPC_HEADER_PREFIX if server.protocol == "grpc" else ""
        return {prefix + API_KEY_HEADER: self.config.api_key}

    async def _ask_or_cancel(
        self,
        server: _Server,
        tensors: dict[str, np.ndarray],
        request_id: str,
        seconds: float,
        on_progress: Callable[[SamplingProgress], None] | None,
    ) -> Answer:
        """One try on one server, which is told when nobody waits for the answer any more.

        A call is not broken off: Triton 2.51 may crash when a client leaves before its answer. The server is asked to
        give the request up instead, and answers at once.

        Raises:
            TimeoutError: the answer did not come in time, plus some grace in which the server may say so itself.
        """
        call = asyncio.ensure_future(self._ask(server, tensors, request_id, seconds, on_progress))
        try:
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                return await asyncio.shield(call)
        except (asyncio.CancelledError, TimeoutError):
            if not call.done():
                await self._cancel(server, request_id)
                await asyncio.wait([call], timeout=LEAVE_SECONDS)
            if call.done() and not call.cancelled():
                call.exception()  # taken, lest asyncio complains
            call.cancel()
            raise

    async def _ask(
        self,
        server: _Server,
        tensors: dict[str, np.ndarray],
        request_id: str,
        seconds: float,
        on_progress: Callable[[SamplingProgress], None] | None,
    ) -> Answer:
        """One try on one server."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                inputs = [await self._input(stack, server, name, array) for name, array in tensors.items()]
                call = {"inputs": inputs, "request_id": request_id, "timeout": int(seconds * 1e6)}
                if on_progress is not None:
                    return await self._stream(server, call, on_progress)
                headers = self._headers(server)
                result = await self._client(server).infer(MODEL, headers=headers, **call)
                return _answer(*(result.as_numpy(tensor.name) for tensor in ANSWER))
        except (ClientError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise _as_client_error(server, error) from error

    async def _stream(
        self, server: _Server, call: dict[str, Any], on_progress: Callable[[SamplingProgress], None]
    ) -> Answer:
        """One try on one server, by the model that reports progress."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": STREAM_MODEL, **call}

        answer = None
        async for result, error in self._client(server).stream_infer(requests(), headers=self._headers(server)):
            if error is not None:
                raise error
            if (image := result.as_numpy(OUTPUT.name)) is not None:
                answer = _answer(image, result.as_numpy(REPORT.name))
                continue
            step, steps = (int(result.as_numpy(tensor.name).item()) for tensor in (STEP, STEPS))
            preview = result.as_numpy(PREVIEW.name)
            on_progress(SamplingProgress(step, steps, None if preview is None else preview.reshape(-1)[0]))
        if answer is None:
            raise UnavailableError(f"{server.url}: the stream ended without an answer")
        return answer

    async def _input(self, stack: contextlib.AsyncExitStack, server: _Server, name: str, array: np.ndarray) -> Any:
        if server.protocol == "grpc":
            from tritonclient.grpc import InferInput
        else:
            from tritonclient.http import InferInput
        from tritonclient.utils import np_to_triton_dtype

        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        if self.config.shared_memory and name in (IMAGE.name, PIXELS.name):
            region, size = await stack.enter_async_context(self._shared(server, array))
            tensor.set_shared_memory(region, size)
        else:
            tensor.set_data_from_numpy(array)
        return tensor

    @contextlib.asynccontextmanager
    async def _shared(self, server: _Server, array: np.ndarray) -> AsyncIterator[tuple[str, int]]:
        """The array in shared memory that the server knows.

        Yields:
            The region's name and its size in bytes.
        """
        from tritonclient.utils import serialize_byte_tensor, shared_memory

        data = serialize_byte_tensor(array).item() if array.dtype == np.object_ else array.tobytes()
        name = f"diffbody-{uuid.uuid4().hex}"
        client, headers = self._client(server), self._headers(server)
        region = shared_memory.create_shared_memory_region(name, f"/{name}", len(data), create_only=True)
        try:
            shared_memory.set_shared_memory_region(region, [np.frombuffer(data, np.uint8)])
            await client.register_system_shared_memory(name, f"/{name}", len(data), headers=headers)
            try:
                yield name, len(data)
            finally:
                with contextlib.suppress(Exception):
                    await client.unregister_system_shared_memory(name, headers=headers)
        finally:
            shared_memory.destroy_shared_memory_region(region)

    async def _cancel(self, server: _Server, request_id: str) -> None:
        """Tell the server that nobody waits for the request any more, so that it stops working on it."""
        array = np.array([request_id.encode()], np.object_)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LEAVE_SECONDS), contextlib.AsyncExitStack() as stack:
                inputs = [await self._input(stack, server, REQUEST_ID.name, array)]
                await self._client(server).infer(CANCEL_MODEL, inputs, headers=self._headers(server))


class Client:
    """`AsyncClient` for programs without asyncio; may be used from several threads. A context manager."""

    def __init__(self, config: ClientConfig | None = None) -> None:
        self._client = AsyncClient(config)
        self._loop = asyncio.new_event_loop()
        self._futures: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def restore(self, image: Image, **asked: Any) -> Answer:
        """See `AsyncClient.restore`. `on_progress` is called in another thread."""
        return self._run(self._client.restore(image, **asked))

    def restore_many(self, images: Iterable[Image], **asked: Any) -> list[Answer | ClientError]:
        """Restore pictures, `concurrency` at a time: answers or errors in the pictures' order."""

        async def collect() -> dict[int, Answer | ClientError]:
            return {number: result async for number, result in self._client.restore_many(images, **asked)}

        results = self._run(collect())
        return [results[number] for number in sorted(results)]

    def is_ready(self) -> bool:
        """Whether at least one of the servers can answer."""
        return self._run(self._client.is_ready())

    def cancel_all(self, timeout: float) -> None:
        """Cancel all restorations under way, here and on the servers; what waits for them ends with `CancelledError`.

        Args:
            timeout: seconds to wait for it.
        """
        futures = list(self._futures)
        for future in futures:
            future.cancel()
        deadline = time.monotonic() + timeout
        while (
            asyncio.run_coroutine_threadsafe(self._count_tasks(), self._loop).result() and time.monotonic() < deadline
        ):
            time.sleep(0.05)

    async def _count_tasks(self) -> int:
        """Number of restorations under way, those that are being cancelled included."""
        return len(asyncio.all_tasks()) - 1

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._futures.add(future)
        try:
            return future.result()
        except BaseException:  # such as Ctrl-C while waiting
            future.cancel()
            raise
        finally:
            self._futures.discard(future)


def request_tensors(image: Image, asked: dict[str, Any]) -> dict[str, np.ndarray]:
    """A call as the tensors of `contract.REQUEST`, by name.

    Args:
        image: the degraded picture.
        asked: the other arguments of `AsyncClient.restore`.

    Raises:
        InvalidRequestError: an unknown name, or a value that its tensor cannot hold.
    """
    known = {tensor.argument: tensor for tensor in REQUEST if tensor not in (IMAGE, PIXELS)}
    if unknown := asked.keys() - known.keys():
        raise InvalidRequestError(f"unknown option {min(unknown)!r}; known are {', '.join(known)}")
    tensors: dict[str, np.ndarray] = {}
    if isinstance(image, np.ndarray):
        tensors[PIXELS.name] = np.ascontiguousarray(image)
    else:
        data = image.read_bytes() if isinstance(image, Path) else image
        tensors[IMAGE.name] = np.array([data], np.object_)
    for name, value in asked.items():
        if value is not None:
            tensors[known[name].name] = _array(known[name], value)
    return tensors


def _array(tensor: TritonTensor, value: Any) -> np.ndarray:
    """The value as an array of the tensor's dtype, (1,).

    Raises:
        InvalidRequestError: the tensor cannot hold the value exactly.
    """
    try:
        array = np.array([value.encode() if isinstance(value, str) else value], NUMPY[tensor.dtype])
        if isinstance(value, str) or array[0] == value or np.isnan(value):
            return array
    except (OverflowError, TypeError, ValueError):
        pass
    raise InvalidRequestError(f"{tensor.argument} cannot be {value!r}; its type is {tensor.dtype}")


def _connection(address: Address) -> dict[str, Any]:
    """Arguments of tritonclient's clients, besides "host:port"."""
    authorities = os.environ.get("SSL_CERT_FILE")  # as curl and Python's own clients read it
    if address.protocol == "http":
        # By itself, this client looks for no proxy.
        return {"ssl": True, "ssl_context": ssl.create_default_context(cafile=authorities)} if address.tls else {}
    found: dict[str, Any] = {"ssl": True, "root_certificates": authorities} if address.tls else {}
    if address.is_of_this_machine:
        # These replace tritonclient's own, which open the size of messages.
        found["channel_args"] = [*NO_PROXY_FOR_GRPC, *((f"grpc.max_{way}_message_length", -1) for way in WAYS)]
    return found


def _answer(image: np.ndarray, report: np.ndarray) -> Answer:
    return Answer(bytes(image.reshape(-1)[0]), RestorationReport.from_json(report.reshape(-1)[0]))


def _as_client_error(server: _Server, error: Exception) -> ClientError:
    """An error of the protocols' libraries as one of ours; a server that cannot be reached is left out for a while."""
    # gRPC's own errors have a code and details, tritonclient's a status and a message.
    status, message = (
        str(next((getattr(error, name)() for name in names if hasattr(error, name)), otherwise))
        for names, otherwise in ((("code", "status"), ""), (("details", "message"), error))
    )
    text = re.sub(rf"in ensemble '{MODEL}', |\[request id: \w+\] ", "", " ".join(message.split()))
    text = text or type(error).__name__
    code, text = split_code(text)
    if code is not None:  # of an error in a stream
        status = GRPC_STATUS[code]
    line = f"{server.url}: {text}"
    if TIME_IS_OVER in text or WAS_CANCELLED in text:  # over HTTP with the status 400
        return DeadlineError(line)
    if status in ("400", "StatusCode.INVALID_ARGUMENT", "StatusCode.OUT_OF_RANGE", "413"):
        return InvalidRequestError(line)
    if status in ("401", "403", "StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED") or "restricted" in text:
        return AccessError(f"{server.url}: the server asks for another API key")
    if status in ("499", "504", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED"):
        return DeadlineError(line)
    unreachable = isinstance(error, OSError) or (not status and type(error).__module__.startswith("aiohttp"))
    if unreachable or (status == "StatusCode.UNAVAILABLE" and any(word in text.lower() for word in BROKEN)):
        server.dead_until = time.monotonic() + DEAD_SECONDS
        return UnavailableError(f"{server.url}: cannot be reached, or went away ({text}); is `diffbody serve` running?")
    if status in ("503", "429", "StatusCode.UNAVAILABLE", "StatusCode.RESOURCE_EXHAUSTED"):
        return UnavailableError(line)
    return ClientError(line)
