//! Amounts of money.

use std::fmt;

use iso_currency::Currency;

use super::strict::FieldError;

/// An amount in minor units of a currency (ISO 4217), between 1 and [`Money::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    minor: i64,
    currency: Currency,
}

impl Money {
    /// The largest amount, in minor units: what a double-precision number in another language
    /// still holds exactly (RFC 8259 section 6).
    pub const MAX: i64 = 9_007_199_254_740_991;

    /// Checks range and currency; `currency` is an ISO 4217 code in capitals.
    pub fn new(minor: i64, currency: &str) -> Result<Self, FieldError> {
        let currency = Currency::from_code(currency)
            .filter(|known| known.code() == currency && known.exponent().is_some())
            .ok_or_else(|| FieldError::at("currency", "must be an ISO 4217 code such as CNY"))?;
        if !(1..=Self::MAX).contains(&minor) {
            return Err(FieldError::at(
                "amount",
                "must be between 1 and 9007199254740991 minor units",
            ));
        }
        Ok(Self { minor, currency })
    }

    /// Reads an amount as people write it, `1000` or `1,000.50`: digits, commas between groups of
    /// three, at most as many decimals as the currency has.
    pub fn from_decimal(text: &str, currency: &str) -> Result<Self, FieldError> {
        let wrong = || FieldError::at("amount", "must be a number such as 1000.00");
        // The smallest amount: what is asked of the currency here is whether it is one.
        let decimals = usize::from(Self::new(1, currency)?.currency.exponent().unwrap_or(0));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let first = whole.split(',').next().unwrap_or("");
        let grouped = whole.contains(',');
        let well_grouped = !grouped
            || (first.len() <= 3 && whole.split(',').skip(1).all(|group| group.len() == 3));
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if first.is_empty()
            || !well_grouped
            || !whole.split(',').all(all_digits)
            || !all_digits(fraction)
            || text.ends_with('.')
            || fraction.len() > decimals
        {
            return Err(wrong());
        }
        let digits = format!("{}{fraction:0<decimals$}", whole.replace(',', ""));
        Self::new(digits.parse().map_err(|_| wrong())?, currency)
    }

    /// The amount in minor units.
    pub fn minor_units(self) -> i64 {
        self.minor
    }

    /// The ISO 4217 code.
    pub fn currency(self) -> &'static str {
        self.currency.code()
    }
}

/// Code, grouped digits, the currency's decimals: `CNY 1,000.00`.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = usize::from(self.currency.exponent().unwrap_or(0));
        let digits = format!("{:0>width$}", self.minor, width = decimals + 1);
        let (whole, fraction) = digits.split_at(digits.len() - decimals);
        write!(f, "{} ", self.currency.code())?;
        for (index, digit) in whole.chars().enumerate() {
            if index > 0 && (whole.len() - index).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        if decimals > 0 {
            write!(f, ".{fraction}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_shows_the_digits_of_its_currency() {
        for (minor, code, shown) in [
            (100_000, "CNY", "CNY 1,000.00"),
            (1, "CNY", "CNY 0.01"),
            (123_456_789, "JPY", "JPY 123,456,789"),
            (1_234, "KWD", "KWD 1.234"),
            (99, "USD", "USD 0.99"),
        ] {
            assert_eq!(Money::new(minor, code).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn a_bad_amount_names_its_field() {
        assert_eq!(Money::new(0, "CNY").unwrap_err().field, "amount");
        assert_eq!(Money::new(-5, "CNY").unwrap_err().field, "amount");
        assert_eq!(
            Money::new(Money::MAX + 1, "CNY").unwrap_err().field,
            "amount"
        );
        assert_eq!(Money::new(1, "cny").unwrap_err().field, "currency");
        assert_eq!(Money::new(1, "ZZZ").unwrap_err().field, "currency");
        // Gold has no minor unit to count in.
        assert_eq!(Money::new(1, "XAU").unwrap_err().field, "currency");
        assert_eq!(
            Money::new(Money::MAX, "CNY").unwrap().minor_units(),
            Money::MAX
        );
    }

    #[test]
    fn what_people_write_is_read_exactly() {
        for (text, currency, minor) in [
            ("1000", "CNY", 100_000),
            ("1000.5", "CNY", 100_050),
            ("1,000.50", "CNY", 100_050),
            ("0.01", "CNY", 1),
            ("1,234,567", "JPY", 1_234_567),
            ("123,456", "JPY", 123_456),
            ("1.234", "BHD", 1_234),
        ] {
            let money = Money::from_decimal(text, currency).unwrap();
            assert_eq!(money.minor_units(), minor, "{text}");
        }
        for (text, currency) in [
            ("", "CNY"),
            (".5", "CNY"),
            ("1.", "CNY"),
            ("1.234", "CNY"),
            ("1.0", "JPY"),
            ("1,00", "CNY"),
            ("1000,000", "CNY"),
            ("-1", "CNY"),
            ("+1", "CNY"),
            ("1e3", "CNY"),
            (" 1", "CNY"),
            ("0", "CNY"),
            ("99999999999999999999", "CNY"),
            ("1", "cny"),
            ("1", "XYZ"),
        ] {
            assert!(
                Money::from_decimal(text, currency).is_err(),
                "{text} {currency}"
            );
        }
    }
}
