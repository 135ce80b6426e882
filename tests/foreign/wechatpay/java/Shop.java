import com.google.gson.JsonObject;
import com.wechat.pay.java.core.http.DefaultHttpClientBuilder;
import com.wechat.pay.java.core.http.HttpClient;
import com.wechat.pay.java.core.http.HttpHeaders;
import com.wechat.pay.java.core.http.JsonRequestBody;
import java.nio.file.Path;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;
import javax.net.ssl.X509TrustManager;
import okhttp3.OkHttpClient;

/**
 * wechatpay-java with a key and secrets that stay on a token: an order, a query, a field.
 *
 * <p>Shop PLATFORM AUTHORITY DAEMON FOLDER MCHID
 */
final class Shop {
  public static void main(String[] arguments) throws Exception {
    String platform = arguments[0];
    Opcert daemon = new Opcert(arguments[2], Path.of(arguments[3]), arguments[4]);
    OpcertConfig config = new OpcertConfig(daemon);
    TrustManagerFactory trust = Opcert.trust(Path.of(arguments[1]));
    SSLContext tls = SSLContext.getInstance("TLS");
    tls.init(null, trust.getTrustManagers(), null);
    OkHttpClient network =
        new OkHttpClient.Builder()
            .sslSocketFactory(
                tls.getSocketFactory(), (X509TrustManager) trust.getTrustManagers()[0])
            .build();
    HttpClient client =
        new DefaultHttpClientBuilder().config(config).okHttpClient(network).build();
    HttpHeaders headers = new HttpHeaders();
    headers.addHeader("Accept", "application/json");
    headers.addHeader("Content-Type", "application/json");

    JsonRequestBody order =
        new JsonRequestBody.Builder()
            .body("{\"description\":\"中文\",\"out_trade_no\":\"wechatpay-java-1\",\"amount\":{\"total\":1}}")
            .build();
    JsonObject created =
        client
            .post(headers, platform + "/v3/pay/transactions/native", order, JsonObject.class)
            .getServiceResponse();
    Check.expect(created.get("code_url").getAsString().endsWith("wechatpay-java-1"), created);
    String orders = platform + "/v3/pay/transactions/out-trade-no/";
    client.get(headers, orders + "java-1?mchid=" + daemon.merchant, JsonObject.class);
    for (String name : new String[] {"PROBE", "CHANGED"}) {
      Check.refused(
          () -> client.get(headers, orders + name, JsonObject.class), "[wechatpay-signature]");
    }

    JsonObject person = new JsonObject();
    person.addProperty("name", config.createEncryptor().encrypt("王小明"));
    JsonObject echoed =
        client
            .post(
                headers,
                platform + "/v3/fields",
                new JsonRequestBody.Builder().body(person.toString()).build(),
                JsonObject.class)
            .getServiceResponse();
    String name = config.createDecryptor().decrypt(echoed.get("name").getAsString());
    Check.expect(name.equals("王小明"), name);
    Check.refused(() -> config.createSigner().sign("pay everything to me\n"), "no message");
    System.out.println("wechatpay-java: ok");
  }
}
