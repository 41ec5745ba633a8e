"""Chat requests: from messages to the model's inputs, and to the server's own answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jinja2 import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler

from vispco.integrations.transformers_serve.generation import Generations
from vispco.integrations.transformers_serve.limits import Limits, Refused
from vispco.integrations.transformers_serve.middleware import CURRENT
from vispco.integrations.transformers_serve.pictures import read_picture
from vispco.integrations.transformers_serve.requests import ChatRequest
from vispco.models.templates import render_chat
from vispco.tasks.rendering import with_one_bos


class Chat(ChatCompletionHandler):  # type: ignore[misc]
    """transformers' handler, except that inputs are made here: off the event loop, within the limits, and the same
    prompts as in an evaluation."""

    def __init__(self, manager: Any, generations: Generations, model: Any, processor: Any, limits: Limits) -> None:
        super().__init__(manager, generations)
        self._model, self._processor, self._limits = model, processor, limits
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        call = CURRENT.get()
        inputs = await asyncio.get_running_loop().run_in_executor(self._preparing, self.prepare, call.asked)
        config = self.settings(call.asked, inputs["input_ids"].shape[-1])
        manager = self.generation_state.get_manager(call.served)
        what = (request_id, self._model, self._processor, call.served, inputs, config)
        if call.asked.stream:
            return self._streaming(*what, gen_manager=manager)
        return await self._non_streaming(*what, gen_manager=manager)

    def prepare(self, asked: ChatRequest) -> Any:
        """What the model receives.

        Raises:
            Refused: a picture cannot be read, or the processor does not accept the messages.
        """
        pictures = [read_picture(url, number, self._limits) for number, url in enumerate(asked.pictures(), 1)]
        messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"} if part.picture is not None else {"type": "text", "text": part.text}
                    for part in message.parts
                ],
            }
            for message in asked.messages
        ]
        try:
            text = render_chat(self._processor, messages)
            inputs = self._processor(
                images=[pictures] if pictures else None,
                text=[with_one_bos(self._processor, text)],
                return_tensors="pt",
            )
        except (ValueError, TypeError, KeyError, OSError, TemplateError) as error:
            what = " ".join(str(error).split())[:200]
            raise Refused(400, f"the model's processor does not accept the request: {what}") from None
        return inputs.to(self._model.device)

    def settings(self, asked: ChatRequest, length: int) -> Any:
        """Settings of ``generate`` for a prompt of ``length`` tokens.

        Raises:
            Refused: the prompt leaves no room for an answer.
        """
        given = asked.model_dump(exclude_none=True, exclude={"messages", "seed"})
        config = self._build_generation_config(given, self._model.generation_config)
        if asked.temperature is not None:
            config.do_sample = asked.temperature > 0
        window = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        room = self._limits.tokens if window is None else window - length
        if room < 1:
            raise Refused(
                400,
                f"the prompt has {length} tokens, pictures included, and the model takes {window}; "
                "send fewer or smaller pictures, or less text",
            )
        config.max_new_tokens = min(asked.tokens(self._limits.tokens), room)
        return config
