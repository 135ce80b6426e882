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
    }
}
