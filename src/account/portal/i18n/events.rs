//! What records and notices are called: the stable kind, English, Chinese.

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

impl Texts {
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
