"""The rules for prompt injection and jailbreaks, English and Chinese. Pure.

They are matched on the folded reading (lower case, look-alikes, leetspeak and spaced-out letters undone), a sentence
at a time. Weights add up within a sentence and count half in the sentence after; `score_of` turns the sum into a
score. One rule that says the whole thing weighs 1.0; one that harmless text has as well weighs less than the
threshold alone.
"""

# ruff: noqa: E501 - a pattern is read best on one line
from __future__ import annotations

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One sign of an attack."""

    name: str
    weight: float
    needs: tuple[tuple[str, ...], ...]
    """Of each group one word is in every text that the pattern matches: looking for words is many times faster."""
    pattern: re.Pattern[str]

    def may_match(self, text: str) -> bool:
        """False when the pattern can't be anywhere in the text."""
        return all(any(word in text for word in words) for words in self.needs)


_EARLIER = r"(?:previous|prior|above|preceding|earlier|former|foregoing|initial|original|existing|system|safety|developer|all|any|your|the|these|those)"
_ORDERS = r"(?:instruction|direction|directive|prompt|rule|command|order|guideline|guidance|programming|polic(?:y|ie)|restriction|constraint|training|context|message)s?"
_ZH_EARLIER = (
    r"(?:之前|以前|前面|先前|上面|上述|以上|此前|前述|原有|原来|原先|所有|一切|全部|任何|系统|你的|您的|开发者)"
)
_ZH_ORDERS = (
    r"(?:指令|指示|命令|提示词?|规则|要求|限制|约束|设定|设置|内容|说明|准则|规定|对话|安全策略|安全准则|系统提示)"
)

_EN = (
    ("override", 1.0, "ignor|disregard|forget|bypass|overr|skip|neglect|abandon|drop|discard & instruct|direct|prompt|rule|command|order|guid|programming|polic|restrict|constraint|training|context|message",
     rf"\b(?:ignore|disregard|forget|bypass|override|overrule|skip|neglect|abandon|drop|discard)\b(?:\s+(?:about|completely|entirely|totally|everything|all|of|every|and|just|please)){{0,4}}(?:\s+(?:{_EARLIER}))(?:\s+(?:{_EARLIER}|of|set|and|given|in|place|safety|content)){{0,5}}\s+{_ORDERS}\b"),
    ("override", 0.9, "ignor|disregard|forget & everything|anything|all|what",
     r"\b(?:ignore|disregard|forget)\s+(?:everything|anything|all|what)\s+(?:(?:that\s+)?(?:i|you|we|they)(?:'ve| have| were| was)?\s+(?:been\s+)?(?:said|told|given|instructed)|above|before|prior|previously|you\s+(?:know|were\s+taught))"),
    ("override", 0.9, "follow|obey|adher|comply & instruct|direct|prompt|rule|command|order|guid|programming|polic|restrict|constraint|training|context|message",
     rf"\b(?:do\s+not|don'?t|stop|never|no\s+longer)\s+(?:follow(?:ing)?|obey(?:ing)?|adher(?:e|ing)\s+to|comply(?:ing)?\s+with)\s+(?:{_EARLIER}\s+){{1,3}}{_ORDERS}"),
    ("override", 0.8, "new|updated|real|actual|revised|secret|override & instruction|directive|prompt|order|rule",
     r"\b(?:new|updated|real|actual|revised|secret|override)\s+(?:system\s+)?(?:instruction|directive|prompt|order|rule)s?\s*(?::|are\b|follow|=)"),
    ("override", 0.45, "from now on|starting now|henceforth",
     r"\b(?:from\s+now\s+on|starting\s+now|henceforth)\b.{0,40}\byou\s+(?:will|must|are|have\s+to|shall|should|can|may)\b"),
    ("override", 0.9, "your & void|cancel|overrid|replaced|superseded|disabled|lifted|removed|suspended|no longer",
     rf"\byour\s+(?:{_ORDERS}|system\s+prompt)\s+(?:is|are|has\s+been|have\s+been|was|were)\s+(?:now\s+)?(?:void|cancel|overrid|replaced|superseded|disabled|lifted|removed|suspended|no\s+longer)"),
    ("extraction", 1.0, "system|hidden|initial|secret|original|prompt|developer & prompt|message|instruction|rule",
     r"\b(?:reveal|show|print|output|repeat|display|leak|dump|expose|disclose|recite|write\s+(?:out|down)|tell\s+me|give\s+me|send\s+me|what(?:'s|\s+is|\s+are|\s+was|\s+were)(?=\s+your))\b(?:\s+\w+){0,4}\s+(?:your|the|its)\s+(?:\w+\s+){0,3}?(?:system\s+(?:prompt|message|instruction)s?|hidden\s+(?:prompt|instruction|rule)s?|initial\s+(?:prompt|instruction)s?|secret\s+(?:prompt|instruction)s?|original\s+(?:prompt|instruction)s?|pre-?prompt|developer\s+message)"),
    ("extraction", 0.9, "repeat|print|output|copy|recite & above|before this|preceding",
     r"\b(?:repeat|print|output|copy|recite)\b.{0,30}\b(?:everything|all|the\s+(?:text|words?|content))\b.{0,20}\b(?:above|before\s+this|preceding)\b"),
    ("extraction", 0.8, "what & instructions|rules|directives",
     r"\bwhat\s+(?:were|are)\s+(?:your|the)\s+(?:exact\s+|original\s+|initial\s+)(?:instructions|rules|directives)"),
    ("persona", 1.0, "dan|do anything now|aim|developer mode|jailbr|god mode|sudo mode|evil|unrestricted|unfiltered|uncensored|amoral|unethical|unaligned",
     r"\b(?:you\s+are|act\s+as|pretend\s+(?:to\s+be|you\s+are|you'?re)|become|play|be|simulate|roleplay\s+as|enter|activate|enable)\b.{0,30}\b(?:dan\b|do\s+anything\s+now|aim\b(?=.{0,20}machiavell)|developer\s+mode|jailbr[eo]ak(?:ed|en)?\s+(?:mode|ai|version|assistant|model)|god\s+mode|sudo\s+mode|evil\s*(?:bot|gpt|confidant|ai)|(?:unrestricted|unfiltered|uncensored|amoral|unethical|unaligned)\s+(?:\w+\s+){0,2}(?:ai|assistant|model|chatbot|bot|llm|gpt|mode|version))"),
    ("persona", 0.9, "do anything now|dan mode|developer mode|jailbreak",
     r"\bdo\s+anything\s+now\b|\bdan\s+mode\b|\bdeveloper\s+mode\s+(?:is\s+)?(?:now\s+)?(?:enabled|activated|on)\b|\bjailbreak\s+(?:mode|prompt)\s*(?:on|enabled|activated|:)"),
    ("persona", 0.9, "ethical|moral|safety|content|legal|openai|ai  & guideline|restriction|filter|limit|constraint|polic|rule|guardrail|consideration|boundar|confine",
     r"\b(?:without|no|free\s+(?:of|from)|ignor\w*|bypass\w*|remove|lift\w*|disabl\w*|not\s+bound\s+by|not\s+restricted\s+by|broken\s+free\s+of)\b(?:\s+(?:any|all|the|your|its|typical|usual|of|and)){0,3}\s+(?:ethical|moral|safety|content|legal|openai'?s?|ai)\s*(?:and\s+\w+\s+)?(?:guideline|restriction|filter|limit|constraint|polic|rule|guardrail|consideration|boundar|confine)"),
    ("persona", 0.7, "refuse|decline|say no|reject|apologi|warn",
     r"\b(?:you|it|he|she|they)\s+(?:can|will|must|should|may|shall)?\s*(?:never|not|cannot|can'?t|won'?t|n't)\s+(?:ever\s+)?(?:refuse|decline|say\s+no|reject|apologi[sz]e|warn)\b"),
    ("persona", 0.6, "responses|answers|ways & unfiltered|jailbr|dan|restricted|normal gpt",
     r"\b(?:two|both)\s+(?:responses|answers|ways)\b.{0,60}\b(?:unfiltered|jailbr|dan|restricted|normal\s+gpt)"),
    ("persona", 0.6, "unrestricted|unfiltered|uncensored",
     r"\b(?:unrestricted|unfiltered|uncensored)\s+(?:ai|assistant|model|chatbot|response|answer|mode|output)s?\b"),
    ("persona", 0.6, "hypothetical|fictional & no rules|no laws|no ethics|no restrictions|anything is",
     r"\b(?:hypothetical|fictional)\b.{0,60}\b(?:no\s+(?:rules|laws|ethics|restrictions)|anything\s+is\s+(?:allowed|permitted|legal))"),
    ("forcing", 0.5, "start|begin & response|answer|reply|message|output|sentence|with|by & sure|of course|absolutely|yes|certainly|here",
     r"\b(?:start|begin)\s+(?:your\s+)?(?:response|answer|reply|message|output|sentence)s?\s+(?:with|by)\s+[\"'“‘]?(?:sure|of\s+course|absolutely|yes|certainly|here)"),
    ("forcing", 0.4, "in character|in dan|in role|warning|disclaimer|caveat|ethical|moral",
     r"\b(?:stay|remain)\s+in\s+(?:character|dan|role)\b|\bdo\s+not\s+(?:include|add|give|provide)\s+(?:any\s+)?(?:warning|disclaimer|caveat|ethical|moral)"),
    ("tool", 1.0, "reading this|processing this|summarizing this|summarising this|parsing this|viewing this|seeing this",
     r"\b(?:ai|assistant|llm|chatbot|language\s+model|agent|gpt|claude)s?\b.{0,40}\b(?:reading|processing|summari[sz]ing|parsing|viewing|seeing)\s+this\b.{0,80}\b(?:must|should|please|ignore|send|reply|respond|forward|instead|output|do\s+not)\b"),
    ("tool", 0.9, "send|forward|post|upload|mail|exfiltrate|leak|transmit|append & conversation|chat history|api key|credential|password|secret|user's data|user data|environment variable|system prompt",
     r"\b(?:send|forward|post|upload|e?-?mail|exfiltrate|leak|transmit|append)\b.{0,50}\b(?:conversation|chat\s+history|api\s+keys?|credentials|password|secrets?|user'?s?\s+data|environment\s+variables|system\s+prompt)\b.{0,40}\b(?:to|via|at|into)\b"),
    ("tool", 0.8, "the user|the human|the customer",
     r"\b(?:do\s+not|don'?t|never)\s+(?:tell|inform|mention|reveal|alert|notify|show)\b.{0,20}\b(?:to\s+)?the\s+(?:user|human|customer)\b"),
    ("tool", 0.6, "important|urgent|attention|note & ai|assistant|llm|chatbot|language model|agent",
     r"\b(?:important|urgent|attention|note)\s+(?:instructions?|message|notice)?\s*(?:for|to)\s+(?:the\s+)?(?:ai|assistant|llm|chatbot|language\s+model|agent)\b"),
)  # fmt: skip

_ZH = (
    ("override", 1.0, "忽略|无视|忘|不要|不用|别管|抛|绕过|跳过|覆盖|推翻|放弃|删除|清除|不再|停止|不必|无需 & 指|命令|提示|规|要求|限制|约束|设|内容|说明|准则|对话|策略",
     rf"(?:忽略|无视|忘记|忘掉|忘了|不要理会|不用理会|别管|不要管|抛开|绕过|跳过|覆盖|推翻|放弃|抛弃|删除|清除|不要遵守|不再遵守|停止遵守|不必遵守|无需遵守|不要遵循|不再遵循)[^。！？\n]{{0,6}}{_ZH_EARLIER}[^。！？\n]{{0,10}}?{_ZH_ORDERS}"),
    ("override", 0.8, "忽略|无视|忘记|忘掉",
     r"(?:忽略|无视|忘记|忘掉)(?:掉)?(?:我|你|他们)?(?:之前|前面|上面|以上|刚才|先前)(?:我)?(?:所)?(?:说|讲|提|告诉|给)"),
    ("override", 0.45, "从现在|自此以后|接下来",
     r"(?:从现在开始|从现在起|自此以后|接下来)[^。！？\n]{0,15}(?:你(?:就)?(?:是|将|要|必须|不再|只能|可以)|扮演)"),
    ("override", 0.8, "新的|真正的|更新后的",
     r"(?:新的|真正的|最新的|更新后的)(?:系统)?(?:指令|指示|提示词|规则|任务)(?:是|如下|为|:)"),
    ("extraction", 1.0, "系统|初始|隐藏|内部|原始|最初|开发者|提示词",
     r"(?:输出|显示|打印|重复|复述|告诉我|说出|泄露|透露|展示|给我看|公开|写出|发给我|背诵|是什么)[^。！？\n]{0,15}(?:系统提示|系统指令|系统消息|初始指令|初始提示|隐藏指令|隐藏的?(?:指令|提示|规则)|内部指令|内部规则|原始指令|原始提示|最初的?(?:指令|设定|提示)|开发者(?:消息|指令)|提示词原文)"),
    ("extraction", 1.0, "你的|您的 & 提示|指令",
     r"(?:你的|您的)(?:系统提示词?|系统指令|初始指令|初始提示词?|隐藏指令|内部指令|原始提示词?|提示词)(?:原文)?(?:是什么|是啥|内容|有哪些|发出来|说出来|告诉我|一字不[漏差]|完整)"),
    ("extraction", 0.9, "重复|复述|输出|打印 & 以上|上面|之前|前面",
     r"(?:重复|复述|输出|打印)[^。！？\n]{0,8}(?:以上|上面|之前|前面)(?:的)?(?:全部|所有)?(?:内容|文字|文本|话)"),
    ("persona", 1.0, "dan|模式|无审查|没有|不受|道德|邪恶",
     r"(?:你(?:现在)?(?:是|就是|将|要)|扮演|假装|假设你是|充当|变成|成为|模拟|进入|开启|启用|激活|切换到)[^。！？\n]{0,15}(?:dan|开发者模式|越狱(?:模式|版)|上帝模式|无限制模式|无审查|没有(?:任何)?(?:限制|约束|道德|审查|规则|底线)的|不受(?:任何)?(?:限制|约束|道德|审查|规则|法律)|没有道德|无道德|邪恶的?(?:ai|人工智能|机器人|助手))"),
    ("persona", 0.8, "道德|伦理|安全|内容|法律|审查|openai|平台 & 限制|约束|束缚|审查|准则|过滤|政策|规则|底线|护栏",
     r"(?:不受|无视|摆脱|突破|绕过|解除|取消|关闭|没有)[^。！？\n]{0,8}(?:道德|伦理|安全|内容|法律|审查|openai|平台)[^。！？\n]{0,6}(?:限制|约束|束缚|审查|准则|过滤|政策|规则|底线|护栏)"),
    ("persona", 0.7, "拒绝|说不|回绝|推辞",
     r"(?:你)?(?:不能|不会|不得|不可以|不要|绝不|永远不)(?:会|能)?(?:拒绝|说不|回绝|推辞)(?:回答|我|任何)"),
    ("persona", 0.7, "模式",
     r"(?:开发者模式|越狱模式|上帝模式|dan模式)(?:已)?(?:开启|启用|激活|打开)"),
    ("forcing", 0.5, "开头|开始",
     r"(?:以|用)[“\"「']?(?:当然|好的|没问题|是的)[^。！？\n]{0,8}(?:开头|开始|作为开头)"),
    ("forcing", 0.4, "警告|免责声明|道德说教|道德提醒",
     r"(?:不要|无需|不用|禁止)(?:添加|包含|给出|附带|提供)?(?:任何)?(?:警告|免责声明|道德说教|道德提醒)"),
    ("tool", 0.9, "ai|人工智能|模型|助手|智能体",
     r"(?:如果你是|所有的?|任何|阅读本文的|看到这(?:段|条|些)(?:文字|消息|内容)?的)(?:ai|人工智能|大?语言模型|大模型|助手|智能体)[^。！？\n]{0,30}(?:必须|请|应该|务必|忽略|改为|发送)"),
    ("tool", 0.9, "记录|对话|密钥|密码|凭证|用户|环境变量|系统提示",
     r"(?:发送|转发|上传|泄露|发给|发到|提交)[^。！？\n]{0,20}(?:聊天记录|对话(?:内容|历史)|密钥|密码|凭证|用户(?:数据|信息)|环境变量|系统提示)[^。！？\n]{0,10}(?:到|给|至)"),
    ("tool", 0.9, "记录|对话|密钥|凭证|用户|环境变量|系统提示",
     r"(?:将|把)[^。！？\n]{0,10}(?:聊天记录|对话(?:内容|历史)|密钥|凭证|用户(?:数据|信息)|环境变量|系统提示词?)[^。！？\n]{0,8}(?:发送|转发|上传|发给|发到|提交)"),
    ("tool", 0.7, "用户|人类|客户",
     r"(?:不要|别|不得|禁止)(?:告诉|告知|通知|提醒|透露给|让)(?:用户|人类|客户)(?:知道)?"),
)  # fmt: skip


def _needs(written: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(word for word in part.strip("\n").split("|")) for part in written.split(" & "))


RULES = tuple(Rule(name, weight, _needs(needs), re.compile(pattern)) for name, weight, needs, pattern in (*_EN, *_ZH))

ROLE_TAGS = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|start_header_id|end_header_id|begin_of_text|system|user|assistant|endofprompt|end)\|?>?"
    r"|</?(?:system|sys|assistant|s|inst|instructions?|system_prompt|developer)>|\[/?inst\]|<</?sys>>"
    r"|(?:^|\n)\s*#{2,4}\s*(?:system|instruction|assistant|new instructions?)\s*:?\s*(?:\n|$)"
    r"|(?:^|\n)\s*(?:system|assistant|developer)\s*:\s*(?:you\s+are|ignore|override|from\s+now|new)"
    r"|\[(?:system|admin|developer)(?:\s+(?:message|override|note|prompt|instruction))\]"
    r"|[-=]{3,}\s*(?:end|begin)\s+of\s+(?:system\s+)?(?:prompt|instructions?|context|document|user\s+input)\s*[-=]{0,}"
    r"|(?:^|\n)\s*(?:系统|开发者)(?:消息|指令|提示)?\s*[:\]】]\s*(?:你|忽略|从现在)"
)
"""Marks that make text look as if it came from the system or the application. Matched on the lower-cased plain
reading."""
ROLE_TAG_WEIGHT = 0.9

TALK_ABOUT = re.compile(
    r"\b(?:what\s+is|what\s+are|what\s+does|explain|describe|define|example|paper|article|research|study|talk|blog|defend|detect|prevent|protect|mitigat"
    r"|classif|translat|known\s+as|called|so-called|attack(?:s|er|ers)?\b|phrase|sentence|quote|means?\b|such\s+as|e\.g\.|like\s+[\"'“])"
    r"|什么是|解释|介绍|例子|论文|文章|研究|防御|检测|防止|防范|识别|翻译|攻击|所谓|例如|比如|这句话|意思"
)
"""Words of somebody who speaks about attacks; with quotation marks around the match they halve its weight."""


def score_of(weight: float) -> float:
    """A sum of weights as a score in [0, 1): 1 - exp(-1.2 w), so that 0.58 gives 0.5, 1.0 gives 0.70 and 2.0 gives 0.91."""
    return 1.0 - math.exp(-1.2 * weight)
