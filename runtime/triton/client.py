"""The client: restores pictures on servers, over gRPC or HTTP, in asyncio (`AsyncClient`) or without it (`Client`)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from runtime.triton.addresses import parse
from runtime.triton.client_errors import (
    RESTRICTED,
    AccessError,
    ClientError,
    DeadlineError,
    InvalidRequestError,
    UnavailableError,
    UnreachableError,
    as_client_error,
)
from runtime.triton.client_messages import Answer, Image, SamplingProgress, read_answer, request_tensors
from runtime.triton.config import ClientConfig
from runtime.triton.connection import Connection, ServedBundle
from runtime.triton.contract import (
    ANSWER,
    API_KEY_HEADER,
    CANCEL_MODEL,
    GRPC_HEADER_PREFIX,
    IMAGE,
    MODEL,
    OUTPUT,
    PIXELS,
    PREVIEW,
    PREVIEW_EVERY,
    REPORT,
    REQUEST_ID,
    STEP,
    STEPS,
    STREAM_MODEL,
)

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds between tries; each pause is twice the last
DEAD_SECONDS = 10.0  # how long a server that did not answer is left out, while there are others
GRACE_SECONDS = 5.0  # beyond a deadline, in which the server may report it itself
CLOSE_SECONDS = 5.0
LEAVE_SECONDS = 1.0  # to ask for a cancellation, and again for the answer to what was cancelled


class AsyncClient:
    """Restores pictures on servers, for asyncio. An asynchronous context manager.

    Raises:
        ValueError: a server's URL is none.
    """

    def __init__(self, config: ClientConfig | None = None) -> None:
        self.config = config or ClientConfig()
        self.servers = [Connection(parse(url)) for url in self.config.urls]
        self._next = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self.servers:
            await server.close()

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

    async def bundle(self) -> ServedBundle:
        """What the servers restore with; those that cannot be reached are passed over.

        Raises:
            InvalidRequestError: they restore with different bundles.
            ClientError: none of them tells.
        """
        found: dict[ServedBundle, str] = {}
        failure: ClientError = UnavailableError("no server")
        for server in self.servers:
            try:
                found[await server.bundle(self._headers(server), self.config.timeout + GRACE_SECONDS)] = server.url
            except Exception as error:
                failure = self._failure(server, error)
        if len(found) > 1:
            raise InvalidRequestError(f"{' and '.join(found.values())} restore with different bundles")
        if not found:
            raise failure
        return next(iter(found))

    def _choose(self, stream: bool) -> Connection:
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

    def _client(self, server: Connection) -> Any:
        return server.open(self.config.timeout + GRACE_SECONDS)

    def _headers(self, server: Connection) -> dict[str, str]:
        if self.config.api_key is None:
            return {}
        prefix = GRPC_HEADER_PREFIX if server.protocol == "grpc" else ""
        return {prefix + API_KEY_HEADER: self.config.api_key}

    async def _ask_or_cancel(
        self,
        server: Connection,
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
        server: Connection,
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
                return read_answer(*(result.as_numpy(tensor.name) for tensor in ANSWER))
        except (ClientError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise self._failure(server, error) from error

    def _failure(self, server: Connection, error: Exception) -> ClientError:
        """The error as one of ours; a server that cannot be reached is left out for a while."""
        failure = as_client_error(server.url, error)
        if isinstance(failure, UnreachableError):
            server.dead_until = time.monotonic() + DEAD_SECONDS
        return failure

    async def _stream(
        self, server: Connection, call: dict[str, Any], on_progress: Callable[[SamplingProgress], None]
    ) -> Answer:
        """One try on one server, by the model that reports progress."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": STREAM_MODEL, **call}

        answer = None
        async for result, error in self._client(server).stream_infer(requests(), headers=self._headers(server)):
            if error is not None:
                raise error
            if (image := result.as_numpy(OUTPUT.name)) is not None:
                answer = read_answer(image, result.as_numpy(REPORT.name))
                continue
            step, steps = (int(result.as_numpy(tensor.name).item()) for tensor in (STEP, STEPS))
            preview = result.as_numpy(PREVIEW.name)
            on_progress(SamplingProgress(step, steps, None if preview is None else preview.reshape(-1)[0]))
        if answer is None:
            raise UnavailableError(f"{server.url}: the stream ended without an answer")
        return answer

    async def _input(self, stack: contextlib.AsyncExitStack, server: Connection, name: str, array: np.ndarray) -> Any:
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
    async def _shared(self, server: Connection, array: np.ndarray) -> AsyncIterator[tuple[str, int]]:
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
            try:
                await client.register_system_shared_memory(name, f"/{name}", len(data), headers=headers)
            except Exception as error:
                if RESTRICTED in str(error):
                    off = "shared memory is off there, or the API key is wrong; see `diffbody serve --shared-memory`"
                    raise AccessError(f"{server.url}: {off}") from error
                raise
            try:
                yield name, len(data)
            finally:
                with contextlib.suppress(Exception):
                    await client.unregister_system_shared_memory(name, headers=headers)
        finally:
            shared_memory.destroy_shared_memory_region(region)

    async def _cancel(self, server: Connection, request_id: str) -> None:
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
        self.close()

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

    def bundle(self) -> ServedBundle:
        """What the servers restore with; see `AsyncClient.bundle`."""
        return self._run(self._client.bundle())

    def close(self) -> None:
        """Cancel what is under way, here and on the servers, and leave them. Who waits gets a `CancelledError`."""
        if not self._thread.is_alive():
            return
        for future in list(self._futures):
            future.cancel()
        end = asyncio.run_coroutine_threadsafe(self._leave(), self._loop)
        with contextlib.suppress(TimeoutError):
            end.result(CLOSE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _leave(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=2 * LEAVE_SECONDS)
        await self._client.__aexit__(None, None, None)

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
