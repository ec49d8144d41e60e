use proptest::prelude::*;

use super::*;

fn cleaned(caption: &str) -> String {
    clean(caption).into_owned()
}

#[test]
fn captions_of_feeds() {
    for (caption, expected) in [
        // Chinese, as Weibo, Douyin and Xiaohongshu write.
        ("雨后的彩虹", "雨后的彩虹"),
        ("今天的日落太美了！！！[笑cry][doge]", "今天的日落太美了！"),
        ("#周末去哪儿# 海边看日出🌅 http://t.cn/A6xYz12", "周末去哪儿 海边看日出🌅"),
        ("#北京[超话]# 胡同里的猫", "北京 胡同里的猫"),
        ("#2026 春晚# 开始了", "2026 春晚 开始了"),
        ("【台风预警】浙江沿海注意防范http://t.cn/A6abc全文", "【台风预警】浙江沿海注意防范 全文"),
        ("@人民日报 : 秋天的第一场雪", ": 秋天的第一场雪"),
        ("转发微博//@小明-Ming:好看//@李四_2：哈哈哈。。。。", "转发微博 好看 哈哈哈。"),
        ("和@张三 一起去海边", "和 一起去海边"),
        ("@张三今天和我们全家人一起去青岛的海边看日落了", "@张三今天和我们全家人一起去青岛的海边看日落了"),
        ("奶茶好喝[害羞R][害羞R] #奶茶 #下午茶 #探店", "奶茶好喝 奶茶 下午茶 探店"),
        ("#日落#大海#沙滩", "日落 大海 沙滩"),
        ("等了三个小时……终于～～～看到了~~~", "等了三个小时…终于～看到了~"),
        ("猫\u{200b}咪\u{feff}睡\u{200d}觉", "猫咪睡觉"),
        ("价格 [2026] 元", "价格 [2026] 元"),
        ("“引号”（括号）《书名》保留", "“引号”（括号）《书名》保留"),
        // English.
        ("Sunset at the beach!!! https://t.co/AbC123 #sunset #beach", "Sunset at the beach! sunset beach"),
        ("RT @nasa: A new picture of Mars... pic.twitter.com/xyz", "A new picture of Mars."),
        ("Coffee with @bob_1 and @alice.", "Coffee with and ."),
        ("I learn C++ and C# (see www.example.com/a?b=c#d).", "I learn C++ and C# (see )."),
        ("mail me at someone@example.com, please", "mail me at someone@example.com, please"),
        ("Toot by @user@example.social about cats", "Toot by about cats"),
        ("don't stop, it's 3.14 & 50% off", "don't stop, it's 3.14 & 50% off"),
        ("wow [grin]\n\n\nnice   view\t!", "wow nice view !"),
        ("either/or, and/or, 24/7", "either/or, and/or, 24/7"),
        // Japanese.
        ("@tanakaさんと江ノ島の海🌊 #海 #夕焼け", "さんと江ノ島の海🌊 海 夕焼け"),
        ("猫かわいい！！！！ｗｗｗ https://x.com/a/status/1?s=20", "猫かわいい！ｗｗｗ"),
        ("＃夕日 ＠hanako_さん きれい〜〜〜", "夕日 さん きれい〜"),
        // Joiners that make what is shown.
        (
            "家族👨\u{200d}👩\u{200d}👧\u{200d}👦と❤\u{fe0f}\u{200d}🔥",
            "家族👨\u{200d}👩\u{200d}👧\u{200d}👦と❤\u{fe0f}\u{200d}🔥",
        ),
        ("می\u{200c}خواهم غروب", "می\u{200c}خواهم غروب"),
        ("क्\u{200d}ष सूर्यास्त", "क्\u{200d}ष सूर्यास्त"),
        ("\u{202e}abc\u{202c} def", "abc def"),
    ] {
        assert_eq!(cleaned(caption), expected, "{caption:?}");
    }
}

#[test]
fn what_has_nothing_left_is_kept() {
    for caption in
        ["http://t.cn/A6xYz12", "@张三 @李四", "[doge]", "@bob!!!", "", "   ", "！！！", "#", "[doge] https://t.co/a …"]
    {
        assert!(matches!(clean(caption), Cow::Borrowed(same) if same == caption), "{caption:?}");
    }
    assert_eq!(cleaned("@张三 🌅"), "🌅");
}

#[test]
fn only_when_it_is_asked_for() {
    let caption = "海边[doge]";
    assert_eq!(CaptionsConfig { clean: false }.apply(caption), caption);
    assert_eq!(CaptionsConfig { clean: true }.apply(caption), "海边");
}

/// Each would take hours if the time were quadratic in one of the parts.
#[test]
fn hostile_captions_end() {
    let unit = [
        "@",
        "@a",
        "#a",
        "#",
        "[a",
        "[doge]",
        "http://a!",
        "http://",
        "www.",
        "a.",
        "a@",
        "/",
        "RT ",
        "RT @",
        "a-",
        "。",
        "\u{200d}",
        "日",
        " ",
        "@日",
        "t.cn/!",
        "ab.com",
    ];
    for first in &unit {
        assert!(clean(&first.repeat(65_536 / first.len())).len() <= 65_536);
        for second in &unit {
            let halves = [first.repeat(8_192 / first.len()), second.repeat(8_192 / second.len())].concat();
            let mixed = [*first, *second].concat().repeat(16_384 / (first.len() + second.len()));
            assert!(clean(&halves).len() <= 16_384 && clean(&mixed).len() <= 16_384);
        }
    }
}

/// Parts that meet one another in every way.
fn fragments() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        4 => prop::sample::select(vec![
            "@", "＠", "#", "＃", "[", "]", "/", "//", ":", "：", ".", "..", "http://", "https://", "www.", "t.cn/", "com/", "RT ",
            "RT", "[doge]", "[笑cry]", "a", "b1", "_", "-", "日", "雨后", "さん", "ア", " ", "\n", "！", "!!", "~", "…", "\u{200b}",
            "\u{200c}", "\u{200d}", "\u{feff}", "\u{fe0f}", "👨", "👩", "क", "्", "می", "।", "+", "C#", "a@b.com", "é", "\u{301}",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,3}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(fragment, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn cleaning_what_is_clean_changes_nothing(caption in fragments()) {
        let once = cleaned(&caption);
        prop_assert_eq!(cleaned(&once), once);
    }

    #[test]
    fn cleaned_is_never_longer_and_never_empty(caption in fragments()) {
        let cleaned = cleaned(&caption);
        prop_assert!(cleaned.len() <= caption.len());
        prop_assert_eq!(cleaned.is_empty(), caption.is_empty());
        prop_assert_eq!(cleaned.chars().any(says_something), caption.chars().any(says_something));
    }

    #[test]
    fn plain_words_stay_as_they_are(words in prop::collection::vec("[a-z日本語雨后彩虹]{1,8}", 1..12)) {
        let caption = words.join(" ");
        prop_assert_eq!(cleaned(&caption), caption);
    }
}
