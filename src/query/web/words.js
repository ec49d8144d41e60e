// The page's words, in the two languages it speaks.

import { keep, recall } from "./kept.js";

const WORDS = {
  en: {
    otherLanguage: "中文", otherLanguageTag: "zh",
    skip: "Skip to the search box",
    headline: "See what the feed is showing",
    lead: "Type a topic in Chinese or English, or drop a picture: the five best posts answer, the newest included.",
    liveLabel: "Live numbers", rate: "posts/s", posts: "in the index", dead: "dead letters", lag: "lag",
    searches: "searches", searchTime: "ms a search", model: "model", lost: "no connection",
    locked: "key needed",
    theme: { system: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" },
    topicLabel: "Topic, in Chinese or English", placeholder: "A topic, in 中文 or English…",
    choosePicture: "Search by a picture", removePicture: "Remove the picture", search: "Search",
    recent: "Recent topics", forget: "Forget them",
    targetLegend: "Compare with", targetImage: "pictures", targetCaption: "captions", targetBoth: "both",
    filters: "Filters", activeFilters: "Filters in force", removeFilter: (filter) => `Remove the filter ${filter}`,
    author: "Author", language: "Language", tag: "Tag", tagHint: "add one…", label: "Label", anyLabel: "any",
    time: "Time", since: "From", until: "Until", lastHour: "last hour", lastDay: "24 hours", lastWeek: "7 days",
    clear: "Clear all", clearFilters: "Clear the filters",
    nearestChip: "no threshold", unfoldedChip: "duplicates shown",
    dropHere: "Drop the picture to search by it",
    zoneTitle: "Drop a picture here",
    zoneText: "or paste one, or click to choose a file: posts with similar pictures are found",
    samplesLabel: "Sample topics", try: "Try", resultsLabel: "Results",
    similar: "similar pictures", original: "original", more: "Show five more",
    keySearch: "search", keyMove: "move", keySimilar: "similar pictures", keyClear: "clear",
    forPrograms: "For programs: the API",
    keyLabel: "API key", keySend: "Use this key", retry: "Try again", retryIn: (seconds) => `Again in ${seconds} s`,
    loading: "Searching…",
    summary: (hits, candidates, milliseconds) =>
      `The best ${hits} of ${candidates} ${candidates === 1 ? "candidate" : "candidates"}, in ${milliseconds} ms`,
    nothingFitsTitle: "Nothing in the feed fits",
    nothingFits: (threshold) => `No post comes up to the threshold of ${threshold}. The nearest ones may have little to do with it.`,
    nothingFitsFiltered: (threshold) => `No post that passes the filters comes up to the threshold of ${threshold}.`,
    showNearest: "Show the nearest all the same",
    emptyTitle: "No post matches",
    emptyFiltered: "No indexed post passes these filters. Loosen or clear them.",
    emptyFeed: "Nothing is indexed yet that could be compared. Posts appear here as they arrive.",
    failedTitle: "The search failed", offlineTitle: "The server does not answer",
    offlineText: "Is feedlens still running? The search is repeated by itself when it is back.",
    overloadedTitle: "Too many searches at once",
    overloadedText: "This feedlens is at its limit. The search is repeated by itself in a moment.",
    rateLimitedTitle: "Too many requests with this API key",
    rateLimitedText: "Each key has its rate. The search is repeated by itself in a moment.",
    unavailableTitle: "Searching is not possible just now",
    keyTitle: "An API key is needed",
    keyText: "Whoever runs this feedlens can give you one. It is kept until this tab is closed.",
    notPicture: "This file is not a picture.", tooLarge: (limit) => `This picture is larger than ${limit} MB.`,
    unreadable: "This file cannot be read.",
    noPicture: "no picture", pictureGone: "picture not available", picturePending: "picture pending",
    searchSimilar: (rank, caption) => `Result ${rank}, search by this picture: ${caption}`,
    filterAuthor: (author) => `Only posts by ${author}`, filterTag: (tag) => `Only posts tagged ${tag}`,
    filterLabel: (label) => `Only posts labelled ${label}`,
    folded: (count) => `+${count} more like this`,
    likePost: "like this post",
    probability: "Probability: softmax over the candidates considered", cosine: "Cosine similarity",
    threshold: (score) => `Threshold ${score}`,
    scoreOf: { image: "picture", caption: "caption" },
    standing: "Standing topics", watchThis: "Watch this topic", watching: "Watching",
    nowWatching: (topic) => `Watching “${topic}”: new posts that fit appear here.`,
    notWatching: (topic) => `No longer watching “${topic}”.`,
    unwatch: (topic) => `Stop watching ${topic}`, searchTopic: (topic) => `Search for ${topic}`,
    noTopics: "None yet. Search for a topic and choose “Watch this topic”: every new post is compared with it.",
    watchAbsent: "This server keeps no standing topics.", watchLocked: "An API key is needed to see them.",
    matches: "Live matches", noMatches: "New posts that fit appear here the moment they are indexed.",
    matchesGap: "Some matches may be missing here: the connection was down for long.",
    matchesSince: (count) => `${count} since this page was opened`,
    newMatches: (count) => (count === 1 ? "1 new match" : `${count} new matches`),
    openMatch: (topic, caption) => `Match for ${topic}, search by its picture: ${caption}`,
    stream: {
      waiting: () => "connecting", live: () => "live", refused: () => "no live matches",
      down: (seconds) => `interrupted, again in ${seconds} s`,
    },
  },
  zh: {
    otherLanguage: "English", otherLanguageTag: "en",
    skip: "跳到搜索框",
    headline: "看看信息流里正在出现什么",
    lead: "输入中文或英文主题，或拖入一张图片：立即给出最相关的五条帖子，包括刚刚到达的。",
    liveLabel: "实时数据", rate: "条/秒", posts: "索引中", dead: "死信", lag: "积压",
    searches: "搜索次数", searchTime: "毫秒/次", model: "模型", lost: "连接中断", locked: "需要密钥",
    theme: { system: "主题：跟随系统", light: "主题：浅色", dark: "主题：深色" },
    topicLabel: "主题，中文或英文", placeholder: "输入主题，中文或 English…",
    choosePicture: "以图搜图", removePicture: "移除图片", search: "搜索",
    recent: "最近的主题", forget: "清除记录",
    targetLegend: "比较对象", targetImage: "图片", targetCaption: "文字", targetBoth: "两者",
    filters: "筛选", activeFilters: "已启用的筛选", removeFilter: (filter) => `移除筛选 ${filter}`,
    author: "作者", language: "语言", tag: "标签", tagHint: "添加…", label: "分类", anyLabel: "不限",
    time: "时间", since: "从", until: "至", lastHour: "近一小时", lastDay: "24 小时", lastWeek: "7 天",
    clear: "全部清除", clearFilters: "清除筛选",
    nearestChip: "不设阈值", unfoldedChip: "显示重复图片",
    dropHere: "松开即以此图搜索",
    zoneTitle: "把图片拖到这里",
    zoneText: "也可以粘贴图片，或点击选择文件：查找图片相似的帖子",
    samplesLabel: "示例主题", try: "试试", resultsLabel: "结果",
    similar: "相似图片", original: "原图", more: "再显示五条",
    keySearch: "搜索", keyMove: "移动", keySimilar: "找相似图片", keyClear: "清除",
    forPrograms: "供程序使用：API",
    keyLabel: "API 密钥", keySend: "使用此密钥", retry: "重试", retryIn: (seconds) => `${seconds} 秒后重试`,
    loading: "正在搜索…",
    summary: (hits, candidates, milliseconds) => `${candidates} 条候选中最佳的 ${hits} 条，用时 ${milliseconds} 毫秒`,
    nothingFitsTitle: "信息流中没有合适的帖子",
    nothingFits: (threshold) => `没有帖子达到阈值 ${threshold}。最接近的帖子可能与主题关系不大。`,
    nothingFitsFiltered: (threshold) => `符合筛选条件的帖子都没有达到阈值 ${threshold}。`,
    showNearest: "仍然显示最接近的",
    emptyTitle: "没有匹配的帖子",
    emptyFiltered: "没有帖子符合这些筛选条件，请放宽或清除筛选。",
    emptyFeed: "索引中还没有可比较的帖子，新帖到达后即可搜索。",
    failedTitle: "搜索失败", offlineTitle: "服务器没有响应",
    offlineText: "feedlens 还在运行吗？恢复后会自动重新搜索。",
    overloadedTitle: "同时搜索的人太多",
    overloadedText: "此 feedlens 已达到上限，稍后会自动重新搜索。",
    rateLimitedTitle: "此 API 密钥的请求过多",
    rateLimitedText: "每个密钥有各自的速率限制，稍后会自动重新搜索。",
    unavailableTitle: "暂时无法搜索",
    keyTitle: "需要 API 密钥",
    keyText: "请向此 feedlens 的管理员索取。密钥只保存到关闭此标签页为止。",
    notPicture: "这个文件不是图片。", tooLarge: (limit) => `图片大于 ${limit} MB。`,
    unreadable: "无法读取这个文件。",
    noPicture: "无图片", pictureGone: "图片不可用", picturePending: "图片待获取",
    searchSimilar: (rank, caption) => `第 ${rank} 条，以此图搜索：${caption}`,
    filterAuthor: (author) => `只看 ${author} 的帖子`, filterTag: (tag) => `只看标签 ${tag}`,
    filterLabel: (label) => `只看分类 ${label}`,
    folded: (count) => `另有 ${count} 条相似`,
    likePost: "与此帖相似",
    probability: "概率：候选帖子上的 softmax", cosine: "余弦相似度",
    threshold: (score) => `阈值 ${score}`,
    scoreOf: { image: "图片", caption: "文字" },
    standing: "持续关注的主题", watchThis: "持续关注此主题", watching: "关注中",
    nowWatching: (topic) => `已关注“${topic}”：合适的新帖会出现在这里。`,
    notWatching: (topic) => `已取消关注“${topic}”。`,
    unwatch: (topic) => `取消关注 ${topic}`, searchTopic: (topic) => `搜索 ${topic}`,
    noTopics: "还没有。搜索一个主题并选择“持续关注此主题”，之后每条新帖都会与它比较。",
    watchAbsent: "此服务器不提供持续关注。", watchLocked: "需要 API 密钥才能查看。",
    matches: "实时匹配", noMatches: "合适的新帖一入库就会出现在这里。",
    matchesGap: "连接中断较久，此处可能缺少部分匹配。",
    matchesSince: (count) => `打开页面以来 ${count} 条`,
    newMatches: (count) => `${count} 条新匹配`,
    openMatch: (topic, caption) => `“${topic}”的匹配，以此图搜索：${caption}`,
    stream: {
      waiting: () => "正在连接", live: () => "实时", refused: () => "无实时匹配",
      down: (seconds) => `连接中断，${seconds} 秒后重连`,
    },
  },
};

const preferred = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
let language = recall("language", preferred) in WORDS ? recall("language", preferred) : preferred;

export function words() {
  return WORDS[language];
}

export function locale() {
  return language === "zh" ? "zh-CN" : "en";
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  keep("language", language);
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
