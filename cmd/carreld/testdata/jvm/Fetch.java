import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.util.Collection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

// Fetch asks for each URL and prints a line for it: what came, or why not. It
// trusts the certificates in the file that is its first argument.
class Fetch {
	public static void main(String[] args) throws Exception {
		KeyStore roots = KeyStore.getInstance(KeyStore.getDefaultType());
		roots.load(null, null);
		try (FileInputStream in = new FileInputStream(args[0])) {
			Collection<? extends Certificate> all = CertificateFactory.getInstance("X.509").generateCertificates(in);
			int n = 0;
			for (Certificate c : all)
				roots.setCertificateEntry("root" + n++, c);
		}
		TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
		trust.init(roots);
		SSLContext tls = SSLContext.getInstance("TLS");
		tls.init(null, trust.getTrustManagers(), null);
		HttpClient client = HttpClient.newBuilder().sslContext(tls).build();
		for (int i = 1; i < args.length; i++) {
			String how;
			try {
				HttpResponse<String> r = client.send(HttpRequest.newBuilder(URI.create(args[i])).build(), HttpResponse.BodyHandlers.ofString());
				how = r.version() + " " + r.statusCode() + " " + r.body().replace('\n', ' ');
			} catch (Exception e) {
				how = "error: " + e;
			}
			System.out.println(args[i] + ": " + how);
		}
	}
}
