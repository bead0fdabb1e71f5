"""Captions of pictures from a vision-language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import random
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from diffbody_ref.data.captioning.prompts import AnswerError, parse_answer, prompt, schema
from diffbody_ref.ops.captions import Caption

JPEG_QUALITY = 90
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before a request is sent again
BUSY_STATUSES = (408, 409, 425, 429)
MAX_ANSWER = 2**20  # characters
RESPONSE_FORMATS: dict[str, dict[str, Any] | None] = {
    "schema": {"type": "json_schema", "json_schema": {"name": "caption", "strict": True, "schema": schema()}},
    "object": {"type": "json_object"},
    "none": None,
}


@dataclass(frozen=True)
class EndpointConfig:
    """Where the model runs, and how it is queried.

    Attributes:
        url: URL of the API with its version, for example "http://localhost:8000/v1".
        model: name of the model at the endpoint.
        response_format: format that the server enforces for answers: "schema" (the JSON schema), "object" (any JSON
            object) or "none".
        max_side: longest side in pixels of the pictures that are sent.
        max_tokens: largest number of tokens in an answer.
        timeout: seconds for one request, from its first byte sent to its last byte received.
        deadline: seconds for one picture, including all repetitions.
        retries: how often a request is sent again if the server is busy, or the server or the connection fails.
        attempts: how often the model is asked about a picture until its answer is valid.

    Raises:
        ValueError: a value is out of its range.
    """

    url: str
    model: str
    response_format: str = "schema"
    max_side: int = 768
    max_tokens: int = 500
    timeout: float = 120.0
    deadline: float = 600.0
    retries: int = 6
    attempts: int = 3

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the endpoint is {self.url!r}; it must begin with http:// or https://")
        if self.response_format not in RESPONSE_FORMATS:
            known = ", ".join(RESPONSE_FORMATS)
            raise ValueError(f"response_format is {self.response_format!r}; it must be one of {known}")
        for name, low in (("max_side", 64), ("max_tokens", 1), ("retries", 0), ("attempts", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("timeout", "deadline"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 seconds")


class EndpointError(ValueError):
    """The endpoint refuses every request (unknown model, wrong key), so the run cannot continue."""


class CaptionError(ValueError):
    """There is no caption for this picture; other pictures may still get one."""


class Endpoint:
    """A client of the endpoint; an async context manager. `caption` can be awaited many times concurrently.

    Args:
        config: where the model runs, and how it is queried.
        api_key: key that is sent as the bearer token; "" sends none.
        connections: largest number of concurrent requests.
    """

    def __init__(self, config: EndpointConfig, api_key: str = "", connections: int = 8) -> None:
        self.config = config
        self._random = random.Random(0)  # spreads repeated requests over time; captions do not depend on it
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(config.timeout),
            limits=httpx2.Limits(max_connections=connections),
        )

    async def __aenter__(self) -> Endpoint:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._client.__aexit__(*error)

    async def caption(self, picture: np.ndarray) -> Caption:
        """Ask the model until its answer is valid; each repetition tells it what was wrong with the previous answer.

        Args:
            picture: uint8 (H, W, 3), RGB.

        Raises:
            CaptionError: there is no valid answer within `attempts` or the deadline; the message says why.
            EndpointError: the endpoint refuses every request.
        """
        messages: list[dict[str, Any]] = [{"role": "user", "content": content(picture, self.config.max_side)}]
        try:
            async with asyncio.timeout(self.config.deadline):
                for _ in range(self.config.attempts):
                    answer = await self._ask(messages)
                    try:
                        return parse_answer(answer)
                    except AnswerError as error:
                        problem = str(error)
                        correction = f"That cannot be used: {problem}. Answer again."
                        messages = [
                            messages[0],
                            {"role": "assistant", "content": answer},
                            {"role": "user", "content": correction},
                        ]
        except TimeoutError:
            raise CaptionError(f"no caption within {self.config.deadline:g} seconds") from None
        raise CaptionError(f"no valid answer in {self.config.attempts} attempts: {problem}")

    async def _ask(self, messages: list[dict[str, Any]]) -> str:
        """Request one answer and return its text; temporary failures are retried after growing pauses.

        Raises:
            CaptionError: the request is refused, or all retries fail.
            EndpointError: the endpoint refuses every request.
        """
        body: dict[str, Any] = {"model": self.config.model, "messages": messages, "temperature": 0}
        body["max_tokens"] = self.config.max_tokens
        if (response_format := RESPONSE_FORMATS[self.config.response_format]) is not None:
            body["response_format"] = response_format
        for attempt in range(self.config.retries + 1):
            wait = 0.0
            try:
                async with asyncio.timeout(self.config.timeout):
                    response = await self._client.post(f"{self.config.url.rstrip('/')}/chat/completions", json=body)
                status = response.status_code
                if status == 200:
                    return _text(response)
                problem = f"the endpoint answers {status}: {_reason(response)}"
                if status in (401, 403, 404):
                    raise EndpointError(f"{self.config.url}: {problem}")
                if status not in BUSY_STATUSES and status < 500:
                    raise CaptionError(problem)
                wait = _retry_after(response)
            except TimeoutError:
                problem = f"the endpoint does not answer within {self.config.timeout:g} seconds"
            except httpx2.TransportError as error:
                problem = f"the endpoint cannot be reached: {str(error) or type(error).__name__}"
            if attempt < self.config.retries:
                pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * self._random.uniform(0.5, 1.0)
                await asyncio.sleep(max(pause, wait))
        raise CaptionError(problem)


def content(picture: np.ndarray, max_side: int) -> list[dict[str, Any]]:
    """The content of a message with the prompt and the picture; see `data_url` for `max_side`."""
    text, url = {"type": "text", "text": prompt()}, {"url": data_url(picture, max_side)}
    return [text, {"type": "image_url", "image_url": url}]


def data_url(picture: np.ndarray, max_side: int) -> str:
    """The data URL of a picture as JPEG, scaled down if its longest side exceeds `max_side` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(response: httpx2.Response) -> str:
    """The model's answer in a response; "" (which is no valid answer) if the response contains none."""
    try:
        answer = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return answer[:MAX_ANSWER] if isinstance(answer, str) else ""


def _reason(response: httpx2.Response) -> str:
    """The error message in a response, at most 200 characters."""
    try:
        return str(response.json()["error"]["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:200] or response.reason_phrase


def _retry_after(response: httpx2.Response) -> float:
    """Seconds that the server asks us to wait, at most `LONGEST_PAUSE`; 0 if it does not say."""
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), LONGEST_PAUSE)
    except ValueError:  # a date, which is rare: our own pauses suffice
        return 0.0
