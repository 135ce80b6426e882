//! What records and notices are called, and the facts in them: the stable name, English, Chinese.

use super::{Language, Texts};

const TITLES: &[(&str, &str, &str)] = &[
    ("logged-in", "Logged in", "登录"),
    ("logged-out", "Logged out", "退出登录"),
    ("code-sent", "SMS code sent", "发送短信验证码"),
    ("ticket-given", "Installation permitted", "准许安装"),
    (
        "installation-held",
        "Installation waits for approval",
        "安装等待审批",
    ),
    (
        "installation-released",
        "Installation approved",
        "安装已获批准",
    ),
    ("certificate-issued", "Certificate installed", "安装证书"),
    ("certificate-revoked", "Certificate deleted", "删除证书"),
    ("operation-created", "Operation created", "创建操作"),
    ("operation-approved", "Operation approved", "授权操作"),
    ("operation-cancelled", "Operation cancelled", "取消操作"),
    (
        "operation-approved-in-part",
        "Approval added",
        "增加一次授权",
    ),
    ("challenge-made", "Challenge made", "生成质询"),
    ("secret-set", "API secret set", "设置 API 密钥"),
    (
        "secret-proposed",
        "API secret waits for approval",
        "API 密钥等待授权",
    ),
    (
        "secret-withdrawn",
        "API secret withdrawn",
        "撤回待授权的 API 密钥",
    ),
    (
        "secret-fetched",
        "API secret arrived at a computer",
        "API 密钥已送达电脑",
    ),
    (
        "secret-destroyed",
        "Old API secret destroyed",
        "销毁旧的 API 密钥",
    ),
    (
        "recipient-added",
        "Computer asks for API secrets",
        "电脑申请获取 API 密钥",
    ),
    (
        "recipient-active",
        "Computer may have API secrets",
        "准许电脑获取 API 密钥",
    ),
    (
        "recipient-ended",
        "Computer gets no API secrets any more",
        "停止向电脑提供 API 密钥",
    ),
    ("request-made", "Request begun", "开始申请"),
    ("request-submitted", "Request submitted", "提交申请"),
    ("request-decided", "Request decided", "申请已有决定"),
    ("request-withdrawn", "Request withdrawn", "撤回申请"),
    ("request-done", "Request carried out", "申请已生效"),
    ("paper-sent-in", "Paper uploaded", "上传材料"),
    ("operator-created", "Operator added", "新增操作员"),
    ("operator-changed", "Operator changed", "修改操作员"),
    ("operator-disabled", "Operator disabled", "停用操作员"),
    ("account-created", "Account created", "创建商户"),
    ("account-changed", "Account changed", "修改商户"),
    ("account-imported", "Account imported", "导入商户"),
    ("account-exported", "Account exported", "导出商户"),
    ("approval-rule-set", "Approval rule set", "设置授权规则"),
    (
        "break-glass-revocation",
        "Certificate deleted in an emergency",
        "紧急删除证书",
    ),
    ("operation-expired", "Operation expired", "操作已过期"),
    ("form-read", "Form downloaded", "下载申请表"),
    ("paper-read", "Paper read", "查看材料"),
    ("papers-purged", "Papers destroyed", "销毁材料"),
    ("request-lapsed", "Request lapsed", "申请已失效"),
];

const FACTS: &[(&str, &str, &str)] = &[
    ("account", "Account", "商户号"),
    ("approval_jti", "Approval", "授权编号"),
    ("approvals", "Approvals", "授权数"),
    ("by", "By", "操作人"),
    ("certificate", "Certificate", "证书"),
    ("challenge_jti", "Challenge", "质询编号"),
    ("client", "Program", "程序"),
    ("code_id", "Code", "验证码编号"),
    ("computer", "Computer", "电脑"),
    ("computer_name", "Computer's name", "电脑名称"),
    ("consent", "Consent", "确认方式"),
    ("currency", "Currency", "币种"),
    ("decision", "Decision", "审核决定"),
    ("effective_at", "Takes effect", "生效时间"),
    ("fingerprint", "Fingerprint", "指纹"),
    ("form", "Form", "申请表"),
    ("from", "From", "起始金额"),
    ("held", "Waits for an administrator", "等待管理员"),
    ("id", "Id", "编号"),
    ("key", "Key", "密钥指纹"),
    ("kind", "Kind", "类型"),
    ("language", "Language", "语言"),
    ("later_installs", "Later installations", "后续安装"),
    ("maker", "Created by", "创建人"),
    ("media_type", "File type", "文件类型"),
    ("merchant", "Merchant number", "商户号（mchid）"),
    ("mobile", "Mobile number", "手机号"),
    ("name", "Name", "名称"),
    ("needed", "Approvals needed", "所需授权数"),
    ("not_after", "Expires", "到期"),
    ("operation", "Operation", "操作"),
    ("operator", "Operator", "操作员"),
    ("overlap_until", "Old one read until", "旧密钥可用至"),
    ("paper", "Paper", "材料"),
    ("password_changed", "Password changed", "已改密码"),
    ("place", "Place", "位置"),
    ("platform_key", "Platform key", "平台密钥"),
    ("purpose", "Purpose", "用途"),
    ("quorum", "Signatures needed", "所需签名数"),
    ("reason", "Reason", "原因"),
    ("reference", "Reference", "单号"),
    ("replaces", "Replaces", "替换"),
    ("representative", "Representative", "客户经理"),
    ("request", "Request", "申请"),
    ("role", "Role", "角色"),
    ("sent_to", "Sent to", "发送至"),
    ("serial", "Serial number", "序列号"),
    ("size", "Bytes", "字节数"),
    ("source", "From address", "来源地址"),
    ("state", "State", "状态"),
    ("ticket", "Ticket", "安装凭证"),
    ("to", "To", "截至"),
    ("version", "Version", "版本"),
    ("waived", "Not proven", "未经证明"),
];

impl Texts {
    /// What a fact of a record is called; its own name where the catalogue does not have it.
    pub fn fact(self, name: &str) -> &str {
        match FACTS.iter().find(|(known, ..)| *known == name) {
            Some((_, english, chinese)) => match self.0 {
                Language::English => english,
                Language::Chinese => chinese,
            },
            None => name,
        }
    }

    /// Why a certificate was revoked, by the stable name; other text as it is.
    pub fn revocation_reason(self, reason: &str) -> &str {
        match reason {
            "key-compromise" => self.reason_lost(),
            "affiliation-changed" => self.reason_left(),
            "cessation-of-operation" => self.reason_unused(),
            "superseded" => self.reason_replaced(),
            "unspecified" => self.reason_none(),
            _ => reason,
        }
    }

    /// The title of a kind of record; the kind itself where the catalogue does not have it.
    pub fn event_title(self, kind: &str) -> &str {
        match TITLES.iter().find(|(known, ..)| *known == kind) {
            Some((_, english, chinese)) => match self.0 {
                Language::English => english,
                Language::Chinese => chinese,
            },
            None => kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_and_reasons_are_in_the_persons_language() {
        let (english, chinese) = (Texts(Language::English), Texts(Language::Chinese));
        assert_eq!(english.fact("not_after"), "Expires");
        assert_eq!(chinese.fact("not_after"), "到期");
        assert_eq!(chinese.fact("something_new"), "something_new");
        assert_eq!(
            english.revocation_reason("key-compromise"),
            "Token lost or stolen"
        );
        assert_eq!(
            chinese.revocation_reason("the form is unsigned"),
            "the form is unsigned"
        );
    }
}
