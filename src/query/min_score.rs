//! The similarity below which a post is no hit: a number, or the bundle's calibrated threshold.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A `min_score`: a number from -1 to 1, "auto" or "none".
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum MinScore {
    /// The bundle's threshold for the topic's language and the target; none where the bundle has no calibration.
    #[default]
    Auto,
    /// Every post is a hit.
    None,
    /// This cosine.
    Number(f32),
}

impl FromStr for MinScore {
    /// The way out.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            number => number
                .parse()
                .ok()
                .filter(|number| (-1.0..=1.0).contains(number))
                .map(Self::Number)
                .ok_or("it must be a number from -1 to 1, \"auto\" or \"none\""),
        }
    }
}

impl<'de> Deserialize<'de> for MinScore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(f64),
            Text(String),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Number(number) => number.to_string(),
            Form::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for MinScore {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::None => serializer.serialize_str("none"),
            Self::Number(number) => serializer.serialize_f32(*number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_or_a_cosine_and_nothing_else() {
        assert_eq!("auto".parse(), Ok(MinScore::Auto));
        assert_eq!("none".parse(), Ok(MinScore::None));
        assert_eq!("-0.25".parse(), Ok(MinScore::Number(-0.25)));
        for text in ["", "Auto", "1.01", "-2", "NaN", "inf", "0,3", "[]"] {
            assert!(text.parse::<MinScore>().is_err_and(|way_out| way_out.contains("\"auto\"")), "{text}");
        }
    }
}
