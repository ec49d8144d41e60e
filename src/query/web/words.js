// The page's words, in the two languages it speaks.

const WORDS = {
  en: {
    skip: "Skip to the search box",
    headline: "Search the feed by words or by a picture",
    liveLabel: "Live numbers", rate: "posts/s", posts: "in the index", indexed: "indexed", dead: "dead letters",
    lag: "lag", searches: "searches", model: "model",
    topicLabel: "Topic, in Chinese or English", placeholder: "A topic, in 中文 or English…",
    choosePicture: "Search by a picture", removePicture: "Remove the picture", search: "Search",
    targetLegend: "Compare with", targetImage: "pictures", targetCaption: "captions", targetBoth: "both",
    filters: "Filters", author: "Author", language: "Language", tag: "Tag", since: "From", until: "Until",
    clear: "Clear", dropHint: "Drop or paste a picture anywhere", dropHere: "Drop the picture to search by it",
    zoneTitle: "Drop a picture here",
    zoneText: "or paste one, or click to choose a file: posts with similar pictures are found",
    samplesLabel: "Sample topics", try: "Try", resultsLabel: "Results", similar: "similar", original: "original",
    keySearch: "search", keyMove: "move", keySimilar: "similar pictures", keyClear: "clear",
    keyLabel: "API key", keySend: "Use this key", retry: "Try again",
    loading: "Searching…",
    summary: (hits, candidates, milliseconds) =>
      `The best ${hits} of ${candidates} ${candidates === 1 ? "candidate" : "candidates"}, in ${milliseconds} ms`,
    emptyTitle: "No post matches",
    emptyFiltered: "No indexed post passes these filters. Loosen or clear them.",
    emptyFeed: "Nothing is indexed yet that could be compared. Posts appear here as they arrive.",
    failedTitle: "The search failed", offlineTitle: "The server does not answer",
    offlineText: "Is feedlens still running? The live numbers resume by themselves.",
    keyTitle: "An API key is needed",
    keyText: "Whoever runs this feedlens can give you one. It is kept until this tab is closed.", notPicture: "This file is not a picture.",
    tooLarge: (limit) => `This picture is larger than ${limit} MB.`,
    unreadable: "This file cannot be read.",
    noPicture: "no picture", pictureGone: "picture not available",
    searchSimilar: (rank) => `Result ${rank}: search by this picture`,
    filterAuthor: (author) => `Only posts by ${author}`, filterTag: (tag) => `Only posts tagged ${tag}`,
    likePost: "like this post", pasted: "picture",
    probability: "Softmax over the candidates considered", cosine: "Cosine similarity",
    scoreOf: { image: "picture", caption: "caption" },
  },
  zh: {
    skip: "跳到搜索框",
    headline: "用文字或图片搜索信息流",
    liveLabel: "实时数据", rate: "条/秒", posts: "索引中", indexed: "已入库", dead: "死信",
    lag: "积压", searches: "搜索次数", model: "模型",
    topicLabel: "主题，中文或英文", placeholder: "输入主题，中文或 English…",
    choosePicture: "以图搜图", removePicture: "移除图片", search: "搜索",
    targetLegend: "比较对象", targetImage: "图片", targetCaption: "文字", targetBoth: "两者",
    filters: "筛选", author: "作者", language: "语言", tag: "标签", since: "从", until: "至",
    clear: "清除", dropHint: "可在任意处拖放或粘贴图片", dropHere: "松开即以此图搜索",
    zoneTitle: "把图片拖到这里",
    zoneText: "也可以粘贴图片，或点击选择文件：查找图片相似的帖子",
    samplesLabel: "示例主题", try: "试试", resultsLabel: "结果", similar: "找相似", original: "原图",
    keySearch: "搜索", keyMove: "移动", keySimilar: "找相似图片", keyClear: "清除",
    keyLabel: "API 密钥", keySend: "使用此密钥", retry: "重试",
    loading: "正在搜索…",
    summary: (hits, candidates, milliseconds) => `${candidates} 条候选中最佳的 ${hits} 条，用时 ${milliseconds} 毫秒`,
    emptyTitle: "没有匹配的帖子",
    emptyFiltered: "没有帖子符合这些筛选条件，请放宽或清除筛选。",
    emptyFeed: "索引中还没有可比较的帖子，新帖到达后即可搜索。",
    failedTitle: "搜索失败", offlineTitle: "服务器没有响应",
    offlineText: "feedlens 还在运行吗？恢复后实时数据会自动继续。",
    keyTitle: "需要 API 密钥",
    keyText: "请向此 feedlens 的管理员索取。密钥只保存到关闭此标签页为止。", notPicture: "这个文件不是图片。",
    tooLarge: (limit) => `图片大于 ${limit} MB。`,
    unreadable: "无法读取这个文件。",
    noPicture: "无图片", pictureGone: "图片不可用",
    searchSimilar: (rank) => `第 ${rank} 条：以此图搜索`,
    filterAuthor: (author) => `只看 ${author} 的帖子`, filterTag: (tag) => `只看标签 ${tag}`,
    likePost: "与此帖相似", pasted: "图片",
    probability: "在候选帖子上的 softmax 概率", cosine: "余弦相似度",
    scoreOf: { image: "图片", caption: "文字" },
  },
};

const STORED = "feedlens.language";

let language = remembered() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

function remembered() {
  // Storage throws where it is switched off.
  try {
    const stored = localStorage.getItem(STORED);
    return stored in WORDS ? stored : null;
  } catch {
    return null;
  }
}

export function words() {
  return WORDS[language];
}

export function locale() {
  return language === "zh" ? "zh-CN" : "en";
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(STORED, language);
  } catch {
    // The choice then lasts as long as the page.
  }
}

/** Puts the words into every element below `root` that names them. */
export function translate(root) {
  const table = words();
  for (const element of root.querySelectorAll("[data-words]")) element.textContent = table[element.dataset.words];
  for (const element of root.querySelectorAll("[data-label]")) element.ariaLabel = table[element.dataset.label];
  for (const element of root.querySelectorAll("[data-title]")) element.title = table[element.dataset.title];
  for (const element of root.querySelectorAll("[data-placeholder]")) {
    element.placeholder = table[element.dataset.placeholder];
  }
}
