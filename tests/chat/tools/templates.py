"""Chat templates of Qwen's releases, as far as conversations with tools go, and some others."""

from __future__ import annotations

BLOCK = (
    r"# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    r"You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
AFTER = (
    r"\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    r"within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
    r"\"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n"
)
OFFER = f"""
    {{{{- "{BLOCK}" }}}}
    {{%- for tool in tools %}}
        {{{{- "\\n" }}}}
        {{{{- tool | tojson }}}}
    {{%- endfor %}}
    {{{{- "{AFTER}" }}}}
"""
CALLS = """
        {%- for tool_call in message.tool_calls %}
            {%- if %SPACED% %}
                {{- '\\n' }}
            {%- endif %}
            {%- if tool_call.function %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
"""
ANSWER = """
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN2_5 = (
    """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- '\\n\\n' }}"""
    + OFFER
    + """
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or """
    """(message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}"""
    + CALLS.replace("%SPACED%", "true")
    + """
        {{- '<|im_end|>\\n' }}"""
    + ANSWER
)
"""Of Qwen2.5, for text: the block that is added to Qwen2.5-VL's template is this one."""

PARTS = """
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content in message.content %}
                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
"""
QWEN3 = (
    """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}"""
    + OFFER
    + """
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' }}"""
    + PARTS
    + """
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}"""
    + PARTS
    + CALLS.replace("%SPACED%", "(loop.first and message.content) or not loop.first")
    + """
        {{- '<|im_end|>\\n' }}"""
    + ANSWER
)
"""Of Qwen3, vision included, without films."""

_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2_5_VL = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}" + _TURNS
)
"""Of Qwen2.5-VL: nothing about tools."""

WITHOUT_SYSTEM = _TURNS
"""It adds no system message of its own."""
OTHER_FORMAT = (
    "{% if tools %}<|im_start|>system\nAnswer with <function=NAME> of {{ tools | tojson }}"
    "<|im_end|>\n{% endif %}" + _TURNS
)
ONLY_OFFERS = (  # calls and their answers are lost
    "{% if tools %}<|im_start|>system\n{% filter trim %}"
    + OFFER.replace("<|im_end|>", "")
    + "{% endfilter %}<|im_end|>\n{% endif %}"
    + _TURNS
)
LOSES_SYSTEM = _TURNS.replace(
    "{% for message in messages %}",
    "{% for message in messages if message['role'] != 'system' %}",
    1,
)
RAISES = "{{ raise_exception('no') if messages | length > 2 }}" + _TURNS
ESCAPES = QWEN3.replace("tool | tojson", "tool | tojson(ensure_ascii=True)")
"""Marks inside of the tools are lost."""

ANNOUNCES_CALLS = QWEN2_5.replace("{{- '<tool_call>", "{{- 'I call:\\n<tool_call>")
"""A call within a text is not what it writes of a call."""
TRIMS_TEXTS = QWEN3.replace(
    "{{- message.content }}\n        {%- else",
    "{{- message.content.split('\\n8th')[0] }}\n        {%- else",
)
"""It cuts the texts of messages."""
