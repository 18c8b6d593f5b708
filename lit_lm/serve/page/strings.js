// All words of the page, in English and Chinese. A function is a sentence with values in it.

const english = {
  language: "中文", // the name of the other language, in that language
  languageLabel: "中文：切换到中文",
  skip: "Skip to the text",
  views: "View",
  write: "Write",
  tokens: "Tokens",
  attention: "Attention",
  chat: "Chat",
  compare: "Compare",
  compareTitle: "Two models side by side, with the same seed",
  compareHint: "What you type appears on both sides, until a model has written.",
  dark: "Dark",

  model: "Model",
  modelFacts: (name, model) =>
    `${name}${number(model.parameters)} parameters, ${model.num_layers} layers of ${model.num_heads} heads, ` +
    `vocabulary of ${number(model.vocab_size)}`,
  text: "Text",
  placeholder: "Type the beginning of a story, then press Continue.",
  count: (used, all) => `${number(used)} of ${number(all)} tokens`,

  continue: "Continue",
  stop: "Stop",
  fromCursor: "Rewrite from cursor",
  fromCursorHint: "Removes the text after the cursor and continues there (Ctrl+Shift+Enter)",
  undo: "Undo",
  redo: "Redo",
  startOver: "Start over",
  startOverHint: "Removes what the model has written; your beginning stays",
  actions: "Actions",

  ready: "Ctrl+Enter continues, Escape stops, Alt+↓ shows the alternatives at the cursor.",
  chatReady: "Ctrl+Enter sends, Escape stops.",
  writing: "Writing …",
  stopped: "Stopped.",
  ended: "The model has ended the text.",
  length: (count) => `Stopped at the length limit of ${count} tokens.`,
  full: (count) => `The context of ${count} tokens is full. Shorten the text, or start over.`,
  undone: "Undone.",
  redone: "Redone.",

  settings: "Settings",
  temperature: "Temperature",
  "temperature-hint": "Higher is more varied; 0 always takes the likeliest token.",
  top_k: "Top-k",
  "top_k-hint": "Only the k likeliest tokens can be chosen.",
  top_p: "Top-p",
  "top_p-hint": "Only the likeliest tokens, which together have this probability.",
  min_p: "Min-p",
  "min_p-hint": "Only tokens at least this likely, relative to the likeliest.",
  max_tokens: "Length",
  "max_tokens-hint": "At most this many new tokens.",
  off: "off",
  seed: "Seed",
  seedHint: "The same seed, text and settings give the same continuation.",
  keepSeed: "Keep this seed",
  defaults: "Reset settings",
  shade: "Shade by probability",
  legend: "Probability of a token:",
  legendRest: "less",
  legendTyped: "typed by you",
  privacy: "Settings are remembered in this browser. Your text is not: it is gone when you close or reload the page.",

  quote: (token) => `“${token}”`,
  alternatives: (token) => `Alternatives to ${token}`,
  tokenId: (id) => `id ${id}`,
  choose: "Choose a token to continue from it:",
  noProbability: "Its probability is not known yet.",
  firstToken: "The first token has no probability: nothing comes before it.",
  part: "part of a character",
  rest: (probability) => `all others: ${percent(probability)}`,

  tokensHelp: (tokens, characters) =>
    `The model does not read letters: these ${number(characters)} characters are ${number(tokens)} tokens to it. ` +
    "Below each is its id.",
  noTokens: "There is no text yet. Type the beginning of a story in the view Write.",
  attentionHelp: "To predict what comes next, the model looks back from a token at the earlier ones. Choose a token.",
  attentionSeen: (token, most) => `${token} looks most at ${most.join(", ")}.`,
  layer: "Layer",
  head: "Head",
  mean: "mean",

  message: "Message",
  messagePlaceholder: "Write to the model",
  send: "Send",
  clear: "Clear",
  conversation: "Conversation",
  you: "You",

  dismiss: "Dismiss",
  busy: (seconds) => `The server is busy: too many requests are waiting. Try again in ${seconds} s.`,
  refused: (why) => `The server refused the request: ${why}`,
  failed: (code) => `The server failed (${code}). Its window may say why.`,
  locked: "This server needs a key (--api_key):",
  broken: (why) => `The page has made a mistake: ${why}`,
  lost: "The connection to the server was lost. Is lit-lm serve still running? Your text is still here.",
};

const chinese = {
  language: "English",
  languageLabel: "English: switch to English",
  skip: "跳到正文",
  views: "视图",
  write: "写作",
  tokens: "词元",
  attention: "注意力",
  chat: "对话",
  compare: "比较",
  compareTitle: "并排比较两个模型，种子相同",
  compareHint: "在模型动笔之前，你输入的文字会同时出现在两边。",
  dark: "深色",

  model: "模型",
  modelFacts: (name, model) =>
    `${name}${number(model.parameters)} 个参数，${model.num_layers} 层，每层 ${model.num_heads} 个头，` +
    `词表大小 ${number(model.vocab_size)}`,
  text: "正文",
  placeholder: "写下故事的开头，然后按“续写”。",
  count: (used, all) => `${number(used)} / ${number(all)} 个词元`,

  continue: "续写",
  stop: "停止",
  fromCursor: "从光标处重写",
  fromCursorHint: "删去光标之后的文字，从这里续写（Ctrl+Shift+Enter）",
  undo: "撤销",
  redo: "重做",
  startOver: "重新开始",
  startOverHint: "删去模型写的文字，保留你写的开头",
  actions: "操作",

  ready: "Ctrl+Enter 续写，Esc 停止，Alt+↓ 查看光标处的其他候选。",
  chatReady: "Ctrl+Enter 发送，Esc 停止。",
  writing: "正在写……",
  stopped: "已停止。",
  ended: "模型写完了。",
  length: (count) => `已达到 ${count} 个词元的长度上限。`,
  full: (count) => `${count} 个词元的上下文已满。请删短文字，或重新开始。`,
  undone: "已撤销。",
  redone: "已重做。",

  settings: "设置",
  temperature: "温度",
  "temperature-hint": "越高越多变；0 表示总是取最可能的词元。",
  top_k: "Top-k",
  "top_k-hint": "只从最可能的 k 个词元中选。",
  top_p: "Top-p",
  "top_p-hint": "只从概率之和达到此值的最可能的词元中选。",
  min_p: "Min-p",
  "min_p-hint": "只选概率不低于“最高概率 × 此值”的词元。",
  max_tokens: "长度",
  "max_tokens-hint": "最多续写这么多个词元。",
  off: "不限",
  seed: "种子",
  seedHint: "种子、文字和设置都相同，续写的结果就相同。",
  keepSeed: "固定种子",
  defaults: "恢复默认设置",
  shade: "按概率着色",
  legend: "词元的概率：",
  legendRest: "更低",
  legendTyped: "你输入的文字",
  privacy: "设置会保存在这个浏览器里，文字不会：关闭或刷新页面后，文字就没有了。",

  quote: (token) => `「${token}」`,
  alternatives: (token) => `${token}的其他候选`,
  tokenId: (id) => `编号 ${id}`,
  choose: "选择一个词元，从它续写：",
  noProbability: "还不知道它的概率。",
  firstToken: "第一个词元没有概率，因为它前面没有文字。",
  part: "字符的一部分",
  rest: (probability) => `其余合计：${percent(probability)}`,

  tokensHelp: (tokens, characters) =>
    `模型读的不是一个个字符：这 ${number(characters)} 个字符在它看来是 ${number(tokens)} 个词元，下方的数字是编号。`,
  noTokens: "还没有文字。请先在“写作”里写下故事的开头。",
  attentionHelp: "预测下文时，模型会从每个词元回看前面的词元。请选择一个词元。",
  attentionSeen: (token, most) => `${token}最关注${most.join("、")}。`,
  layer: "层",
  head: "头",
  mean: "平均",

  message: "消息",
  messagePlaceholder: "给模型写点什么",
  send: "发送",
  clear: "清空",
  conversation: "对话",
  you: "你",

  dismiss: "关闭",
  busy: (seconds) => `服务器正忙，排队的请求太多。请 ${seconds} 秒后再试。`,
  refused: (why) => `服务器拒绝了请求：${why}`,
  failed: (code) => `服务器出错了（${code}），原因可能显示在它的终端窗口里。`,
  locked: "这个服务器需要密钥（--api_key）：",
  broken: (why) => `页面出错了：${why}`,
  lost: "与服务器的连接断开了。lit-lm serve 还在运行吗？你的文字还在。",
};

let language = "en";

/** Sets the language: "en", "zh" or, if undefined, the browser's. */
export function speakLanguage(name = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en") {
  language = name;
  document.documentElement.lang = { en: "en", zh: "zh-CN" }[name];
}

/** The words of a name, with the values that belong into them. */
export function say(name, ...values) {
  const words = { en: english, zh: chinese }[language][name];
  return typeof words === "function" ? words(...values) : words;
}

export const number = (value) => new Intl.NumberFormat(language).format(value);

export function percent(probability) {
  const { format } = new Intl.NumberFormat(language, { style: "percent", maximumSignificantDigits: 2 });
  return probability > 0 && probability < 0.001 ? `< ${format(0.001)}` : format(probability);
}
