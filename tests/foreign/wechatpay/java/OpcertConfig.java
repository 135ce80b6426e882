import com.wechat.pay.java.core.Config;
import com.wechat.pay.java.core.auth.Credential;
import com.wechat.pay.java.core.auth.Validator;
import com.wechat.pay.java.core.auth.WechatPay2Credential;
import com.wechat.pay.java.core.cipher.PrivacyDecryptor;
import com.wechat.pay.java.core.cipher.PrivacyEncryptor;
import com.wechat.pay.java.core.cipher.SignatureResult;
import com.wechat.pay.java.core.cipher.Signer;
import com.wechat.pay.java.core.http.HttpHeaders;

/** wechatpay-java with a key and secrets that stay on a token: for the {@code config} of a service. */
record OpcertConfig(Opcert daemon) implements Config {
  @Override
  public Signer createSigner() {
    return new Signer() {
      @Override
      public SignatureResult sign(String message) {
        Opcert.Signed signed = daemon.sign(message);
        return new SignatureResult(signed.signature(), signed.serial());
      }

      @Override
      public String getAlgorithm() {
        return "SHA256-RSA2048";
      }
    };
  }

  @Override
  public Credential createCredential() {
    return new WechatPay2Credential(daemon.merchant, createSigner());
  }

  @Override
  public Validator createValidator() {
    return new Validator() {
      @Override
      public <T> boolean validate(HttpHeaders headers, String body) {
        daemon.verify(headers.getHeaders(), body);
        return true;
      }

      @Override
      public <T> String getSerialNumber() {
        return daemon.serial();
      }
    };
  }

  @Override
  public PrivacyEncryptor createEncryptor() {
    return new PrivacyEncryptor() {
      @Override
      public String encrypt(String plaintext) {
        return daemon.encrypt(plaintext);
      }

      @Override
      public String getWechatpaySerial() {
        return daemon.serial();
      }
    };
  }

  @Override
  public PrivacyDecryptor createDecryptor() {
    return daemon::decrypt;
  }
}
